"""The schema of the matrix and its CSV: exact values in, the same values out, every mistake refused where it stands."""

import csv
import io
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import DataError
from quantverdict.matrix.columns import METRICS, decimal, matrix_order, matrix_table, parse_matrix, read_matrix
from quantverdict.records import Estimate, Row

PUBLISHED = Path(__file__).parents[1] / "data" / "published_matrix.csv"
HEADER = "base_model,family,params_b,quant,bpw,is_baseline"


def text_of(value):
    """A CSV field as the bundle writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Fraction):
        return f"{float(value):.12f}" if value.denominator > 10**12 else exact_or_rounded(value)
    return repr(value) if isinstance(value, float) else str(value)


def exact_or_rounded(value):
    scaled = round(value * 10**12)
    return f"{'-' if scaled < 0 else ''}{abs(scaled) // 10**12}.{abs(scaled) % 10**12:012d}"


def csv_of(table):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([text_of(value) for value in row] for row in table.rows)
    return out.getvalue()


def cell(columns, fields):
    """A matrix of one baseline with the metric columns given."""
    return f"{HEADER},{columns}\nm,F,1.5,FP16,16.0,1,{fields}\n"


def refused(text):
    with pytest.raises(DataError) as caught:
        parse_matrix(text, "m.csv")
    return str(caught.value)


def test_the_published_matrix_is_read_exactly():
    matrix = read_matrix(PUBLISHED)
    assert len(matrix) == 51
    rows = {row.cell: row for row in matrix}
    assert rows["llama3.2-3b", "Q4_K_M"].value("refusal_rate") == Fraction(146, 220)
    assert rows["llama3.2-1b", "FP16"].value("bertscore") == Fraction("0.646")
    assert rows["mistral-7b", "AWQ"].value("bertscore") is None
    assert rows["qwen2.5-7b", "Q8_0"].is_baseline
    assert rows["phi-2", "FP16"].metrics["truthfulness"] == Estimate(Fraction("0.39"), n=50)


def test_row_order_does_not_matter():
    header, *lines = PUBLISHED.read_text().splitlines()
    shuffled = "\n".join([header, *reversed(lines)])
    assert parse_matrix(shuffled) == read_matrix(PUBLISHED)


def test_written_and_read_again_the_published_matrix_is_the_same():
    matrix = read_matrix(PUBLISHED)
    assert parse_matrix(csv_of(matrix_table(matrix))) == matrix


@st.composite
def estimates(draw, metric):
    lo, hi = draw(st.one_of(st.just((None, None)), st.tuples(*[st.floats(0, 1)] * 2).map(sorted).map(tuple)))
    n = draw(st.one_of(st.none(), st.integers(1, 10**6)))
    if metric.proportion and n is not None and draw(st.booleans()):
        k = draw(st.integers(0, n))
        return Estimate(Fraction(k, n), lo, hi, n, k)
    top = 1 if metric.is_share else 10**9
    return Estimate(decimal(draw(st.floats(0, top))), lo, hi, n)


@st.composite
def matrices(draw):
    names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
    rows = []
    for model in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        quants = draw(st.lists(names, min_size=1, max_size=4, unique=True))
        for index, quant in enumerate(quants):
            chosen = draw(st.lists(st.sampled_from(sorted(METRICS)), max_size=4, unique=True))
            rows.append(
                Row(
                    base_model=model,
                    family=draw(st.sampled_from(["", "Llama"])),
                    params_b=draw(st.one_of(st.none(), st.floats(0.1, 500))),
                    quant=quant,
                    bpw=draw(st.one_of(st.none(), st.floats(0.5, 32).map(decimal))),
                    is_baseline=index == 0,
                    metrics={name: draw(estimates(METRICS[name])) for name in METRICS if name in chosen},
                )
            )
    return tuple(sorted(rows, key=matrix_order))


@given(matrices())
def test_the_round_trip_is_exact(matrix):
    """Counts, decimals, intervals and what is missing all survive matrix.csv."""
    assert parse_matrix(csv_of(matrix_table(matrix))) == matrix


@given(st.text(max_size=60))
def test_garbage_is_refused_not_crashed_on(text):
    with pytest.raises(DataError):
        parse_matrix(text)


@given(st.text(max_size=30))
def test_any_field_is_a_number_or_refused(text):
    field = '"' + text.replace('"', '""') + '"'
    try:
        value = parse_matrix(cell("rouge_l", field))[0].value("rouge_l")
    except DataError:
        return
    assert value is None or -1.01 <= value <= 1.01


def test_columns_come_in_the_order_of_the_schema_and_only_where_measured():
    text = f"{HEADER},truthfulness,refusal_rate_n,refusal_rate_k\nm,F,,FP16,,1,0.5,4,3\n"
    assert matrix_table(parse_matrix(text)).columns == (
        *HEADER.split(","),
        "refusal_rate", "refusal_rate_k", "refusal_rate_n", "refusal_rate_ci_lo", "refusal_rate_ci_hi",
        "truthfulness", "truthfulness_n", "truthfulness_ci_lo", "truthfulness_ci_hi",
    )  # fmt: skip


def test_a_decimal_is_the_decimal_that_is_printed():
    row = parse_matrix(cell("rouge_l", "0.1"))[0]
    assert row.value("rouge_l") == Fraction(1, 10)


def test_counts_that_pandas_wrote_as_floats_are_counts():
    row = parse_matrix(cell("refusal_rate_k,refusal_rate_n", "3.0,4.0"))[0]
    assert row.metrics["refusal_rate"] == Estimate(Fraction(3, 4), n=4, k=3)


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path):
    file = tmp_path / "m.csv"
    file.write_bytes(b"\xef\xbb\xbf" + cell("rouge_l", "0.5").replace("\n", "\r\n\r\n").encode())
    assert read_matrix(file)[0].value("rouge_l") == Fraction(1, 2)


@pytest.mark.parametrize(
    ("printed", "agrees"),
    [("0.75", True), ("0.745", False), ("0.755", False), ("0.7500", True), ("0.7501", False), ("1", False)],
)
def test_a_rate_printed_beside_its_counts_must_be_that_rate(printed, agrees):
    """3/4 printed to any number of places is 3/4 rounded, and nothing else."""
    text = cell("refusal_rate,refusal_rate_k,refusal_rate_n", f"{printed},3,4")
    if agrees:
        assert parse_matrix(text)[0].value("refusal_rate") == Fraction(3, 4)
    else:
        assert (
            refused(text)
            == f"m.csv:2: refusal_rate: {printed} is not 3/4; expected 0.75, as refusal_rate_k and refusal_rate_n say"
        )


@pytest.mark.parametrize("printed", ["0.67", "0.667", "0.666666666667"])
def test_a_rounded_rate_agrees_with_its_counts(printed):
    text = cell("refusal_rate,refusal_rate_k,refusal_rate_n", f"{printed},2,3")
    assert parse_matrix(text)[0].value("refusal_rate") == Fraction(2, 3)


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        ("rogue_l", "1", "m.csv:1: rogue_l: unknown column; expected a metric of the schema, perhaps rouge_l"),
        ("rouge_l,rouge_l", "1,1", "m.csv:1: rouge_l: given twice; expected each column once"),
        ("truthfulness_k", "1", "m.csv:1: truthfulness_k: unknown column; expected truthfulness, truthfulness_n"),
        ("rouge_l", "nan", "m.csv:2: rouge_l: 'nan' is not a finite number; expected a decimal"),
        ("rouge_l", "-inf", "m.csv:2: rouge_l: '-inf' is not a finite number"),
        ("rouge_l", "1/2", "m.csv:2: rouge_l: '1/2' is not a finite number"),
        ("rouge_l", "64%", "m.csv:2: rouge_l: '64%' is not a finite number"),
        ("rouge_l", "64.6", "m.csv:2: rouge_l: 64.6; expected a share of 1"),
        ("refusal_rate", "-0.2", "m.csv:2: refusal_rate: -0.2; expected a share of 1"),
        ("refusal_rate", "1.0011", "m.csv:2: refusal_rate: 1.0011; expected a share of 1"),
        ("refusal_rate", "-0.0011", "m.csv:2: refusal_rate: -0.0011; expected a share of 1"),
        ("rouge_l", "1.0011", "m.csv:2: rouge_l: 1.0011; expected a share of 1"),
        ("file_bytes", "-1", "m.csv:2: file_bytes: -1; expected a number of bytes, at least 0"),
        ("refusal_rate_k,refusal_rate_n", "5,4", "m.csv:2: refusal_rate_k: 5 of 4; expected 0 <= refusal_rate_k"),
        ("refusal_rate_k,refusal_rate_n", "0,0", "m.csv:2: refusal_rate_n: 0; expected"),
        ("refusal_rate_k,refusal_rate_n", "-1,4", "m.csv:2: refusal_rate_k: -1 is not a count"),
        ("refusal_rate_k,refusal_rate_n", "1.5,4", "m.csv:2: refusal_rate_k: 1.5 is not a count"),
        ("refusal_rate_k,refusal_rate_n", "3,", "m.csv:2: refusal_rate_n: missing beside refusal_rate_k"),
        ("refusal_rate_k,refusal_rate_n", ",4", "m.csv:2: refusal_rate_n: given without refusal_rate"),
        ("rouge_l,rouge_l_n", "0.5,0", "m.csv:2: rouge_l_n: 0; expected at least 1"),
        ("rouge_l,rouge_l_n", "0.5,-3", "m.csv:2: rouge_l_n: -3 is not a count"),
        ("rouge_l_ci_lo,rouge_l_ci_hi", "0,1", "m.csv:2: rouge_l_ci_lo: given without rouge_l"),
        ("rouge_l,rouge_l_ci_lo,rouge_l_ci_hi", "0.5,0.7,0.3", "m.csv:2: rouge_l_ci_lo: not an interval"),
        ("rouge_l,rouge_l_ci_lo", "0.5,0.3", "m.csv:2: rouge_l_ci_lo: not an interval"),
        ("rouge_l", "0.5,0.6", "m.csv:2: 8 fields; expected 7"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_column(columns, fields, message):
    assert refused(cell(columns, fields)).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv:1: base_model: missing column"),
        (f"{HEADER}\n", "m.csv:1: has no rows"),
        ("base_model,quant\na,b\n", "m.csv:1: is_baseline: missing column"),
        (f"{HEADER}\na,F,1,Q8_0,8,0\n", "m.csv:2: is_baseline: 0 baselines of a; expected exactly one"),
        (f"{HEADER}\na,F,1,Q8_0,8,1\na,F,1,FP16,16,1\n", "m.csv:3: is_baseline: 2 baselines of a (lines 2, 3)"),
        (f"{HEADER}\na,F,1,Q8_0,8,1\na,F,1,Q8_0,8,0\n", "m.csv:3: quant: a/Q8_0 is given twice, first on line 2"),
        (f"{HEADER}\n,F,1,Q8_0,8,1\n", "m.csv:2: base_model: blank; expected a name"),
        (f"{HEADER}\na,F,1,Q8_0,8,yes\n", "m.csv:2: is_baseline: 'yes' is not valid; expected 1 or 0"),
        (f"{HEADER}\na,F,1,Q8_0,0,1\n", "m.csv:2: bpw: 0 is not valid; expected a number above 0"),
        (f'{HEADER}\na,F,"1,Q8_0,8,1\n', "m.csv:2: not valid CSV"),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(text, message):
    assert refused(text).startswith(message)


def test_a_missing_file_and_one_that_is_not_text_are_refused(tmp_path):
    binary = tmp_path / "m.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (binary, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="cannot be read"):
            read_matrix(path)
