"""Decode speed of a Llama-shaped model in real vLLM, with HybridGen's `cpu` kind and with vLLM's own CPU backend.

    PYTHONPATH=<unpacked wheel> python tests/bench/end_to_end.py --context 16384 --dtypes bfloat16,float16

Each contender is a vLLM engine in a process of its own, which computes the prompt once and keeps it in its prefix cache;
then they decode in turn, some tokens each, and only then. `hybridgen` is the `cpu` kind on vLLM's tensor, `vllm` the CPU
backend of vLLM with the plug-in disabled, `idle` the same with the plug-in loaded and not selected. Rounds in which the
machine was not quiet are dropped and counted. Weights are random: tokens of the contenders are compared and reported, but
16-bit types may part at a near tie.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sampling

_MODEL = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 4096, "initializer_range": 0.05,
    "tie_word_embeddings": False,
}  # fmt: skip
_SETTINGS = {"hybridgen": {"attention_backend": "CUSTOM"}, "vllm": {}, "idle": {}}


def make_model(folder: str, max_tokens: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**_MODEL, max_position_embeddings=max_tokens)).save_pretrained(folder)


def serve(arguments) -> None:
    """An engine: answers every line of standard input, a number of tokens, by one line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    from vllm import LLM, SamplingParams

    layers, heads, size = (_MODEL[key] for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
    element = 4 if arguments.dtypes == "float32" else 2
    tokens = arguments.context + arguments.tokens
    llm = LLM(
        model=arguments.model, skip_tokenizer_init=True, dtype=arguments.dtypes, max_model_len=tokens,
        block_size=arguments.block_size, enforce_eager=True, enable_prefix_caching=True,
        kv_cache_memory_bytes=2 * (tokens + 4 * arguments.block_size) * 2 * layers * heads * size * element,
        **_SETTINGS[arguments.serve],
    )  # fmt: skip
    engine = llm.llm_engine
    rng = random.Random(1)
    prompt = [rng.randrange(_MODEL["vocab_size"]) for _ in range(arguments.context)]

    def generate(name: str, count: int):
        """Tokens, and the time of each but the first."""
        sampling_params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        engine.add_request(name, {"prompt_token_ids": prompt}, sampling_params)
        tokens, steps, last = [], [], None
        while engine.has_unfinished_requests():
            for output in engine.step():
                now = time.perf_counter()
                if last is not None:
                    steps.append(now - last)
                tokens, last = list(output.outputs[0].token_ids), now
        return tokens, steps

    began = time.perf_counter()
    generate("prompt", 1)
    print(json.dumps({"prompt_seconds": time.perf_counter() - began}), file=answers, flush=True)
    for number, line in enumerate(sys.stdin):
        with sampling.Quiet() as quiet:
            tokens, steps = generate(f"round {number}", int(line))
        print(json.dumps({"tokens": tokens, "steps": steps, "quiet": quiet.clean()}), file=answers, flush=True)


class Engine:
    def __init__(self, arguments, name: str, dtype: str, model: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HYBRIDGEN_")}
        environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        environment["HYBRIDGEN_DISABLE"] = "1" if name == "vllm" else "0"
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--model", model, "--dtypes", dtype,
             "--context", str(arguments.context), "--tokens", str(arguments.tokens),
             "--block-size", str(arguments.block_size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip
        self.prompt_seconds = self._answer()["prompt_seconds"]
        self._process.send_signal(signal.SIGSTOP)

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            sys.exit(f"an engine ended with {self._process.wait()}:\n{self._log.read()[-3000:]}")
        return json.loads(line)

    def decode(self, count: int) -> dict:
        # Stopped between its turns: OpenMP's threads would spin beside the others.
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(arguments, dtype: str, model: str) -> dict:
    names = arguments.contenders.split(",")
    engines = {name: Engine(arguments, name, dtype, model) for name in names}
    steps = {name: [] for name in names}
    rates, discarded, tokens = [], 0, {}
    for engine in engines.values():
        engine.decode(arguments.tokens)  # a first round for caches and threads
    end = time.monotonic() + arguments.case_seconds
    while len(rates) < arguments.samples and time.monotonic() < end:
        answers = {name: engine.decode(arguments.tokens) for name, engine in engines.items()}
        tokens = {name: answer["tokens"] for name, answer in answers.items()}
        if not all(answer["quiet"] for answer in answers.values()) and not arguments.disturbed:
            discarded += 1
            continue
        rates.append({name: len(answer["steps"]) / sum(answer["steps"]) for name, answer in answers.items()})
        for name, answer in answers.items():
            steps[name] += answer["steps"]
    for engine in engines.values():
        engine.close()
    result = {"dtype": dtype, "clean": len(rates), "discarded": discarded, "quiet": len(rates) >= sampling.FEWEST,
              "prompt_seconds": {name: engine.prompt_seconds for name, engine in engines.items()},
              "tokens_equal": len({tuple(t) for t in tokens.values()}) == 1}  # fmt: skip
    if result["quiet"]:
        result["tokens_per_second"] = {name: sampling.spread([r[name] for r in rates]) for name in names}
        result["over_vllm"] = {n: sampling.spread([r[n] / r["vllm"] for r in rates]) for n in names if n != "vllm"}
        result["step_p99_ms"] = {n: 1e3 * sorted(steps[n])[int(0.99 * len(steps[n]))] for n in names}
    return result


def print_result(result: dict) -> None:
    counts = f"{result['clean']} clean rounds, {result['discarded']} discarded"
    if not result["quiet"]:
        print(f"{result['dtype']:9} machine not quiet ({counts})", flush=True)
        return
    rates = "  ".join(f"{name} {s['median']:.1f}" for name, s in result["tokens_per_second"].items())
    print(f"{result['dtype']:9} tokens/s: {rates}   ({counts}; tokens equal: {result['tokens_equal']})")
    for name, s in result["over_vllm"].items():
        print(f"{'':9} {name}/vllm {s['min']:.3f} {s['median']:.3f} {s['max']:.3f}   p99 of a step: "
              f"{result['step_p99_ms'][name]:.1f} ms against {result['step_p99_ms']['vllm']:.1f}", flush=True)  # fmt: skip
    seconds = "  ".join(f"{name} {value:.1f}" for name, value in result["prompt_seconds"].items())
    print(f"{'':9} prompt, seconds, once: {seconds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtypes", default="bfloat16,float16", help="separated by commas")
    parser.add_argument("--contenders", default="hybridgen,vllm", help="of hybridgen, vllm, idle; vllm is needed")
    parser.add_argument("--context", type=int, default=16384, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=17, help="decoded in one round")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--case-seconds", type=float, default=120, help="a type gives up after this time")
    parser.add_argument("--disturbed", action="store_true", help="keep disturbed rounds")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--serve", choices=_SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments)
    results = []
    with tempfile.TemporaryDirectory() as model:
        make_model(model, arguments.context + arguments.tokens)
        for dtype in arguments.dtypes.split(","):
            results.append(compare(arguments, dtype, model))
            print_result(results[-1])
    sampling.write_results(arguments, results)


if __name__ == "__main__":
    main()
