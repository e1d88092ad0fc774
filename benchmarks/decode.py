"""Generation by cotmi_jax, transformers and CTranslate2: the same student, inputs and number of tokens.

    python -m benchmarks.decode --dataset=cqa --preset=small --batch_size=64 --max_tokens=64

A student of random parameters is exported once, and every side loads the export; all compute in float32. The row of its
output matrix that gives the eos is zero, so that no output ends before --max_tokens on any side. Inputs are the first
--examples test questions with the prefix `predict: `. cotmi_jax and transformers get the batches that `evaluate` makes,
of rows of similar lengths; CTranslate2 gets all inputs in one call with max_batch_size and sorts them itself. Each side
runs in a process of its own, which generates everything once to compile and to allocate, then --passes times; processes
alternate --rounds times. The result is printed as JSON: examples per second of wall clock (median of all passes), CPU
seconds (user and system) per pass, peak memory, the first pass, and how many outputs equal those of cotmi_jax. The root
of the data is --data_root or $COTMI_DATA_ROOT.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.table import Options, Row, missing, run_json, shown_command
from cotmi_jax.parallel.accelerators import skip_absent_tpu

SIDES = ("jax", "transformers", "ctranslate2")
Generate = Callable[[list[list[int]]], list[list[int]]]  # inputs with eos → outputs


def prepare(arguments: argparse.Namespace, directory: Path) -> None:
    """Write the student as a Hugging Face directory, and the token ids of the inputs."""
    import jax

    from cotmi_jax.config import base
    from cotmi_jax.data.run_data import load_data
    from cotmi_jax.data.tasks import task_input
    from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
    from cotmi_jax.experiment import find_vocabulary, make_student
    from cotmi_jax.models.hf import save_hf
    from cotmi_jax.models.student import StudentDef

    config = base()
    config.data.dataset, config.data.root = arguments.dataset, arguments.data_root or ""
    config.model.preset = arguments.preset
    file = find_vocabulary(config)
    vocabulary = Vocabulary(file)
    student = StudentDef.of(make_student(config, vocabulary)[0])
    params = jax.tree.map(np.array, student.init(jax.random.key(0)))
    params["head"][:, EOS_ID] = 0.0  # far below the highest of the other logits
    save_hf(params, student.config, directory / "hf", vocabulary_file=file)
    examples = load_data(config).corpus.splits["test"][: arguments.examples]
    texts = [task_input(example.input, "dss", "predict") for example in examples]
    inputs = [[*ids[: config.data.max_input_tokens - 1], EOS_ID] for ids in vocabulary.encode(texts)]
    (directory / "inputs.json").write_text(json.dumps(inputs))


def in_batches(inputs: list[list[int]], batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of rows of similar lengths, as `evaluate` makes them: indices, −1 for padding, and ids [B, S]."""
    from cotmi_jax.data.order import eval_batches

    lengths = np.array([[len(ids)] for ids in inputs])
    batches = []
    for batch in eval_batches(lengths, batch_size, weights_C=[1], min_saving=0, multiple=8):
        ids = np.zeros((batch_size, batch.lengths[0]), np.int32)
        for row, index in enumerate(batch.rows):
            if index >= 0:
                ids[row, : len(inputs[index])] = inputs[index]
        batches.append((batch.rows, ids))
    return batches


def batched(generate: Callable[[np.ndarray], np.ndarray], inputs: list[list[int]], batch_size: int) -> list[list[int]]:
    """The outputs of a function of padded batches, by index."""
    outputs: list[list[int]] = [[] for _ in inputs]
    for rows, ids in in_batches(inputs, batch_size):
        for index, tokens in zip(rows, generate(ids), strict=True):
            if index >= 0:
                outputs[index] = tokens.tolist()
    return outputs


def jax_side(arguments: argparse.Namespace, directory: Path) -> tuple[Generate, str]:
    import jax

    from cotmi_jax.inference.generation import Generation
    from cotmi_jax.inference.load import load_trained
    from cotmi_jax.models.decoding import Decoding
    from cotmi_jax.parallel.batch import put_batch

    decoding = Decoding(max_tokens=arguments.max_tokens)
    if arguments.beams > 1:
        decoding = Decoding("beam", max_tokens=arguments.max_tokens, num_beams=arguments.beams)
    trained = load_trained(str(directory / "hf"), "latest")
    generation = Generation(trained.student, trained.mesh)
    params = generation.reshard(trained.params)

    def generate(ids: np.ndarray) -> np.ndarray:
        with jax.set_mesh(generation.mesh):
            inputs_BxS = put_batch({"inputs": ids}, generation.mesh)["inputs"]
            return generation.tokens(params, inputs_BxS, decoding=decoding)

    name = f"jax {jax.__version__}, {jax.devices()[0].device_kind}"
    return lambda inputs: batched(generate, inputs, arguments.batch_size), name


def transformers_side(arguments: argparse.Namespace, directory: Path) -> tuple[Generate, str]:
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory / "hf", dtype=torch.float32).eval()

    def generate(ids: np.ndarray) -> np.ndarray:
        inputs = torch.from_numpy(ids.astype(np.int64))
        with torch.inference_mode():
            found = model.generate(
                input_ids=inputs,
                attention_mask=(inputs != 0).long(),
                max_new_tokens=arguments.max_tokens,
                num_beams=arguments.beams,
                do_sample=False,
            )
        return found[:, 1:].numpy()

    name = f"transformers {transformers.__version__}, attention {model.config._attn_implementation}"
    return lambda inputs: batched(generate, inputs, arguments.batch_size), name


def ctranslate2_side(arguments: argparse.Namespace, directory: Path) -> tuple[Generate, str]:
    from transformers import AutoTokenizer

    ctranslate2 = importlib.import_module("ctranslate2")  # an extra, without types

    converted = directory / "ct2"
    if not converted.exists():
        converters = importlib.import_module("ctranslate2.converters")
        converters.TransformersConverter(str(directory / "hf")).convert(str(converted))
    translator = ctranslate2.Translator(
        str(converted), compute_type="float32", inter_threads=1, intra_threads=arguments.threads
    )
    tokenizer = AutoTokenizer.from_pretrained(directory / "hf")

    def generate(inputs: list[list[int]]) -> list[list[int]]:
        results = translator.translate_batch(
            [tokenizer.convert_ids_to_tokens(ids) for ids in inputs],
            max_batch_size=arguments.batch_size,
            beam_size=arguments.beams,
            max_decoding_length=arguments.max_tokens,
            return_scores=False,
        )
        return [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]

    return generate, f"ctranslate2 {ctranslate2.__version__}, {translator.compute_type}"


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Generate with one side: the seconds of each pass, and the outputs."""
    directory = Path(arguments.directory)
    inputs = json.loads((directory / "inputs.json").read_text())
    sides = {"jax": jax_side, "transformers": transformers_side, "ctranslate2": ctranslate2_side}
    start = time.perf_counter()
    generate, name = sides[arguments.side](arguments, directory)
    outputs = generate(inputs)
    first, wall, cpu = time.perf_counter() - start, [], []
    for _ in range(arguments.passes):
        start, used = time.perf_counter(), time.process_time()
        outputs = generate(inputs)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    lengths = {len(output) for output in outputs}
    if lengths != {arguments.max_tokens}:
        raise ValueError(f"{arguments.side}: outputs of {sorted(lengths)} tokens, not {arguments.max_tokens}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": name, "first": first, "wall": wall, "cpu": cpu, "peak_gib": peak, "outputs": outputs}


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the sides alternately, `rounds` times."""
    found: dict[str, list[dict]] = {side: [] for side in arguments.sides}
    with tempfile.TemporaryDirectory() as directory:
        prepare(arguments, Path(directory))
        for _ in range(arguments.rounds):
            for side, results in found.items():
                command = [sys.executable, "-m", "benchmarks.decode", *sys.argv[1:]]
                command += [f"--side={side}", f"--directory={directory}"]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                results.append(json.loads(output.splitlines()[-1]))
                print(f"{side}: {results[-1]['wall']} s, CPU {results[-1]['cpu']}", file=sys.stderr, flush=True)
    names = ("dataset", "preset", "batch_size", "examples", "max_tokens", "beams", "threads")
    report: dict[str, object] = {
        "set-up": {name: getattr(arguments, name) for name in names},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    for side, results in found.items():
        reference = found["jax"][0]["outputs"] if "jax" in found else results[0]["outputs"]
        equal = [ours == theirs for ours, theirs in zip(reference, results[0]["outputs"], strict=True)]
        seconds = statistics.median(second for result in results for second in result["wall"])
        report[side] = {
            "name": results[0]["name"],
            "examples_per_second": arguments.examples / seconds,
            "seconds": [round(second, 3) for result in results for second in result["wall"]],
            "cpu_seconds": statistics.median(second for result in results for second in result["cpu"]),
            "first_pass_seconds": statistics.median(result["first"] for result in results),
            "peak_memory_gib": max(result["peak_gib"] for result in results),
            "outputs_equal": statistics.mean(equal),
        }
    return report


def rows(options: Options) -> list[Row]:
    """Examples/s of greedy and beam search on CommonsenseQA beside every peer that is installed."""
    sizes = ["--dataset=arithmetic", "--preset=tiny", "--batch_size=8", "--examples=8", "--max_tokens=4"]
    chosen = sizes if options.quick else ["--dataset=cqa", "--preset=small", "--batch_size=64", "--max_tokens=64"]
    chosen += [f"--data_root={options.data_root}"] * bool(options.data_root)
    absent = {"transformers": missing("torch", "transformers"), "ctranslate2": missing("torch", "ctranslate2")}
    installed = [side for side, packages in absent.items() if not packages]
    found = []
    for beams in (1, 4):
        given = [*chosen, f"--rounds={options.rounds}", f"--beams={beams}", "--sides", "jax", *installed]
        report, command = run_json("benchmarks.decode", *given), shown_command("benchmarks.decode", *given)
        setup = report["set-up"]
        speeds = {side: [setup["examples"] / each for each in report[side]["seconds"]] for side in ("jax", *installed)}
        method = "greedy" if beams == 1 else f"beam {beams}"
        for side, packages in absent.items():
            found.append(
                Row.of(
                    f"generation, {method}, {setup['preset']}, {setup['dataset']}, {setup['max_tokens']} tokens",
                    "examples/s",
                    speeds["jax"],
                    speeds.get(side, ()),
                    command=command,
                    peer_name=side if packages else report[side]["name"],
                    note=f"no {' and '.join(packages)}: pip install -e '.[torch,engines]'" if packages else "",
                )
            )
    return found


def main() -> None:
    """Parse the command line; without --side, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cqa")
    parser.add_argument("--data_root")
    parser.add_argument("--preset", default="small", help="of family v1.1")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--beams", type=int, default=1, help="1: greedy")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and CTranslate2")
    parser.add_argument("--passes", type=int, default=1, help="timed passes of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    skip_absent_tpu()
    print(json.dumps(measure(arguments)) if arguments.side else json.dumps(compare(arguments), indent=1))


if __name__ == "__main__":
    main()
