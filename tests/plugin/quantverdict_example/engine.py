"""A backend that reads recorded answers, and an importer of scores."""

import csv

from quantverdict.errors import EngineError
from quantverdict.records import Completion


class CsvReplay:
    """Answers of `BASE__QUANT.csv`, with the columns task, sample_id and text."""

    def __init__(self, folder, cell):
        path = folder / f"{cell.base_model}__{cell.quant}.csv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                self._answers = {(row["task"], row["sample_id"]): row["text"] for row in csv.DictReader(file)}
        except OSError as error:
            raise EngineError(f"{path}: cannot be read ({error.strerror})") from error
        self.identity = {"engine": "csv_replay", "version": "1.0"}

    def complete(self, prompts, decoding, progress=None):
        texts = [self._answers[prompt.task, prompt.sample_id] for prompt in prompts]
        return [Completion(text, "stop", 1, len(text.split())) for text in texts]

    def close(self):
        """Nothing is held."""


def read_semicolons(path):
    """Rows of a table whose values stand between semicolons."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter=";"):
            yield {**row, "value": float(row["value"])}
