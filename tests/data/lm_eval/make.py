"""What lm-evaluation-harness makes of the rows in `rows.json`: run where it is installed, it writes `prompts.json`.

    python tests/data/lm_eval/make.py

The rows are made by hand, in the schema of each data set. Of each row: the context, the choices or the target, and the
place of the right choice, as the package's own classes give them (0.4.13 when this was last run).
"""

import json
from pathlib import Path

HERE = Path(__file__).parent


def harness(name, rows, train, fewshot):
    """The package's own task on these rows."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    found = None
    for path in sorted((Path(lm_eval.__file__).parent / "tasks").rglob("*.yaml")):
        text = path.read_text()
        if any(f"{quote}task{quote}: {mark}{name}{mark}\n" in f"{text}\n" for quote in ('"', "") for mark in ('"', "")):
            found = load_yaml(path)
            if found.get("task") == name and "group" not in found:
                break

    class OnRows(ConfigurableTask):
        def download(self, *_, **__):
            own, other = datasets.Dataset.from_list(rows), datasets.Dataset.from_list(train or rows)
            self.dataset = {"train": other, "dev": other, "validation": own, "test": own}

    task = OnRows(config={key: value for key, value in found.items() if key != "include"})
    task.set_fewshot_seed(1234)
    made = []
    for doc in task.eval_docs:
        context = task.fewshot_context(doc, num_fewshot=fewshot)
        target = task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
        made.append({"context": context, "choices": choices, "target": target, "text": task.doc_to_text(doc)})
    return made


def main():
    given = json.loads((HERE / "rows.json").read_text())
    made = {key: harness(one["task"], one["rows"], one.get("train"), one["fewshot"]) for key, one in given.items()}
    (HERE / "prompts.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
