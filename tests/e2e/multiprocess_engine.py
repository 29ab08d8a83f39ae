"""One engine as vLLM runs it by default: front end, engine core and worker are processes of their own.

multiprocess_engine.py MODEL_FOLDER RESULT_FILE
"""

import dataclasses
import json
import sys


def main(folder: str, result_file: str) -> None:
    import scenarios

    from hybridgen.errors import ResourceExhausted

    arguments = dict(kv_cache_memory_bytes=scenarios.DEVICE_BYTES["llama"])
    result = {}
    try:  # refused in the front end, before any other process starts
        with scenarios.engine(folder, "CUSTOM", {"dram": "1M", "cxl": "0"}, **arguments):
            pass
    except ResourceExhausted as error:
        result["refusal"] = str(error)
    # Sizes, device kind and statistics file come from HYBRIDGEN_* variables.
    with scenarios.engine(folder, "CUSTOM", **arguments) as llm:
        result["answers"] = {name: [dataclasses.asdict(a) for a in scenarios.run(llm, name)] for name in ("long", "batch")}
    with open(result_file, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
