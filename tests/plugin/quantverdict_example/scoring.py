"""A scorer: one answer in, grades out."""

import json

from quantverdict.grading.base import Grade


def score_json(_task, _item, _response, text):
    """`json_validity` of the answer after the task's filters."""
    try:
        json.loads(text)
    except ValueError:
        yield Grade("json_validity", 0.0)
    else:
        yield Grade("json_validity", 1.0)
