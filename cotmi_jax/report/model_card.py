"""The model card of an exported student: its README.md, with the metadata that the Hugging Face hub reads."""

import os.path
from collections.abc import Iterator
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from ml_collections import ConfigDict

from cotmi_jax.data.tasks import task_input, tasks_of
from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import Path, read_json, user_error_on_failure
from cotmi_jax.inference.load import TrainedStudent
from cotmi_jax.workdir.record import RUN_FILE

_CITATIONS = """```bibtex
@inproceedings{chen2024learning,
  title     = {Learning to Maximize Mutual Information for Chain-of-Thought Distillation},
  author    = {Chen, Xin and Huang, Hanxian and Gao, Yanjun and Wang, Yi and Zhao, Jishen and Ding, Ke},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2024},
  year      = {2024}
}

@inproceedings{hsieh2023distilling,
  title     = {Distilling Step-by-Step! Outperforming Larger Language Models with Less Training Data and Smaller Model
               Sizes},
  author    = {Hsieh, Cheng-Yu and Li, Chun-Liang and Yeh, Chih-Kuan and Nakhost, Hootan and Fujii, Yasuhisa and
               Ratner, Alexander and Krishna, Ranjay and Lee, Chen-Yu and Pfister, Tomas},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2023},
  year      = {2023}
}
```"""


class Measured(NamedTuple):
    """A metric of the exported checkpoint on a split; interval: 95%, None if the metric states none."""

    dataset: str
    split: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    n: int


def read_scores(workdir: Path, step: int) -> list[Measured]:
    """Every metric that `evaluate` wrote to the workdir for the checkpoint of that step.

    Raises UserError for a file that evaluate did not write.
    """
    folder, found = workdir / "evaluation", []
    with user_error_on_failure(f"cannot read {folder}"):  # of its own data by split, of others by data and split
        files = sorted([*folder.glob("*/metrics.json"), *folder.glob("*/*/metrics.json")])
    for file in files:
        fields = read_json(file, "evaluate again, or remove the file")
        try:
            if fields["checkpoint"]["step"] == step:
                found += list(_measured(fields))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} was not written by evaluate: evaluate again, or remove the file") from error
    return found


def _measured(fields: dict[str, Any]) -> Iterator[Measured]:
    method = fields.get("decoding", {}).get("method", "greedy")
    split = f"{fields['split']}{'' if method == 'greedy' else f' ({method})'}"
    for name, score in fields["metrics"].items():
        interval = score["interval"]
        if interval is not None:
            low, high = interval
            interval = (float(low), float(high))
        yield Measured(str(fields["dataset"]), split, name, float(score["value"]), interval, int(score["n"]))


def model_card(
    name: str, model_type: str, trained: TrainedStudent, workdir: Path | None, *, license: str | None
) -> str:
    """The card of a student as Markdown.

    name: of the folder, or on the hub. workdir: of its training, whose record and evaluations are read; None: the
    student is a converted checkpoint, of whose training nothing is known. license: the hub's identifier, such as
    apache-2.0.
    """
    config = trained.config
    scores = [] if workdir is None or trained.step is None else read_scores(workdir, trained.step)
    init = "" if config is None else config.model.init
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text2text-generation",
        tags=[model_type, "cotmi_jax", *([] if config is None else ["chain-of-thought-distillation"])],
        license=license,
        base_model=init if init.count("/") == 1 and not os.path.exists(init) else None,  # a name on the hub
        model_name=name,
        eval_results=[_eval_result(score) for score in scores] or None,
    )
    sections = [f"# {name}", _summary(model_type, config), _use(name, trained)]
    if config is not None and workdir is not None:
        sections += [_training(config, trained.step, _train_examples(workdir)), _scores(scores)]
    sections += [_license(license), "## Citation\n\n" + _CITATIONS]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _eval_result(score: Measured) -> EvalResult:
    return EvalResult(
        task_type="text2text-generation",
        dataset_type=score.dataset,
        dataset_name=score.dataset,
        dataset_split=score.split,
        metric_type=score.metric,
        metric_value=score.value,
    )


def _summary(model_type: str, config: ConfigDict | None) -> str:
    if config is None:
        return f"A {model_type} checkpoint, written by cotmi_jax."
    return (
        f"A {model_type} student trained with cotmi_jax on `{config.data.dataset}`, objective "
        f"`{config.objective.name}`."
    )


def _use(name: str, trained: TrainedStudent) -> str:
    objective = trained.objective
    tasks = {} if objective is None else {task: task_input("TEXT", objective, task) for task in tasks_of(objective)}
    inputs = "\n".join(f"- {task}: `{text}`" for task, text in tasks.items())
    return f"""## Use

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSeq2SeqLM.from_pretrained("{name}")
inputs = tokenizer("{next(iter(tasks.values()), "TEXT")}", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
```""" + (f"\n\nInputs, by task:\n\n{inputs}" if inputs else "")


def _train_examples(workdir: Path) -> int | None:
    """From the run's record; older records lack it."""
    fields = read_json(workdir / RUN_FILE, "give the --workdir of a training run").get("data")
    train = fields.get("train") if isinstance(fields, dict) else None
    return train.get("examples") if isinstance(train, dict) else None


def _training(config: ConfigDict, step: int | None, examples: int | None) -> str:
    objective, optimizer, data = config.objective, config.optimizer, config.data
    rows: dict[str, object] = {
        "data": data.dataset,
        "train examples": "not recorded" if examples is None else examples,
        "labels": {"gt": "gold", "llm": "the teacher's"}.get(data.label_type, data.label_type),
        "input, target": f"at most {data.max_input_tokens} and {data.max_target_tokens} tokens",
        "initial parameters": config.model.init,
        "objective": objective.name,
    }
    if objective.name != "standard":
        rows["α (label), 1 − α (rationale)"] = f"{objective.alpha:g}, {1 - objective.alpha:g}"
        if objective.alpha_schedule:
            rows["α by phase, with its end as a fraction of the steps"] = objective.alpha_schedule
    if objective.name == "cotmi":
        rows["β, estimator of I(Z;V)"] = f"{objective.beta:g}, {config.mi.estimator}"
    rows |= {
        "checkpoint": f"step {step} of {config.steps}",
        "batch": f"{config.batch_size} examples",
        "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, {optimizer.schedule}",
        "seed": config.seed,
    }
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())


def _cell(value: object) -> str:
    return one_line(str(value)).replace("|", "\\|")


def _scores(scores: list[Measured]) -> str:
    if not scores:
        return "## Scores\n\nThis checkpoint was not evaluated before its export."
    rows = [
        f"| {_cell(score.dataset)} | {_cell(score.split)} | {_cell(score.metric)} | {score.value:.4f} | "
        + ("" if score.interval is None else f"{score.interval[0]:.4f} to {score.interval[1]:.4f}")
        + f" | {score.n} |"
        for score in scores
    ]
    head = "## Scores\n\n| data | split | metric | value | 95% interval | n |\n|---|---|---|---:|---|---:|\n"
    return head + "\n".join(rows)


def _license(license: str | None) -> str:
    if license is None:
        return "## License\n\nNot stated. That of the data and of the initial parameters may restrict the use."
    return f"## License\n\n{license}. That of the data and of the initial parameters may restrict the use further."
