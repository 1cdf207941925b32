"""The schema of the matrix and its CSV: exact values in, the same values out, every mistake refused where it stands."""

import csv
import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import DataError
from quantverdict.matrix.columns import (
    METRICS,
    baselines,
    beyond_bounds,
    decimal,
    matrix_order,
    matrix_table,
    parse_matrix,
    read_matrix,
    references,
)
from quantverdict.records import Estimate, Row, SharedPrompts

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


def only(columns, fields, metric):
    return parse_matrix(cell(columns, fields), "m.csv")[0].metrics.get(metric)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("1.001", "1001/1000"), ("-1.001", "-1001/1000"), ("1e-3", "1/1000"), ("1E-3", "1/1000"), ("0.5e-1", "1/20"),
        (".5", "1/2"), ("+0.5", "1/2"), ("-0.0", "0"), (f"0.{'0' * 29}1", f"1/1{'0' * 30}"), ("  0.5 ", "1/2"),
        ("1e-999", f"1/1{'0' * 999}"),
    ],
)  # fmt: skip
def test_a_share_is_read_in_every_form_of_a_decimal(field, value):
    assert only("rouge_l", field, "rouge_l") == Estimate(Fraction(value))


@pytest.mark.parametrize(
    ("column", "field", "told"),
    [
        ("rouge_l", "1.0011", "1.0011; expected a share"),
        ("rouge_l", "-1.0011", "-1.0011; expected a share"),
        ("rouge_l", f"0.{'0' * 30}1", "is not a finite number"),
        ("rouge_l", "1e-1000", "'1e-1000' is not a finite number"),
        ("rouge_l", "1e", "'1e' is not a finite number"),
        ("rouge_l", "5.", "5; expected a share"),
        ("refusal_rate", "1.0011", "1.0011; expected a share"),
        ("refusal_rate", "-0.0011", "-0.0011; expected a share"),
        ("file_bytes", "-0.1", "-0.1; expected a number of bytes, at least 0"),
        ("refusal_rate_k,refusal_rate_n", "٣,4", "'٣' is not a finite number"),
        ("refusal_rate_k,refusal_rate_n", "1,0", "refusal_rate_n: 0; expected 0 <= refusal_rate_k"),
        ("refusal_rate_k,refusal_rate_n", "3,-4", "-4 is not a count"),
        ("rouge_l,rouge_l_ci_lo,rouge_l_ci_hi", "0.5,1e400,1e401", "1e400 is not a finite number"),
        ("rouge_l,rouge_l_ci_lo,rouge_l_ci_hi", "0.5,-1e400,0", "-1e400 is not a finite number"),
        ("rouge_l,rouge_l_ci_lo,rouge_l_ci_hi", "0.5,,0.3", "not an interval"),
        ("rouge_l,rouge_l_ci_lo,rouge_l_ci_hi", ",,0.3", "rouge_l_ci_hi: given without rouge_l"),
        ("refusal_rat", "1", "perhaps refusal_rate"),
        ("xyzzy", "1", "unknown column; expected a metric of the schema"),
        ("rouge_l_k", "1", "it is a mean, not a proportion"),
    ],
)
def test_what_is_no_value_of_a_column_is_told(column, field, told):
    assert told in refused(cell(column, field))


@pytest.mark.parametrize(
    ("fields", "estimate"),
    [
        ("0,4", Estimate(Fraction(0), n=4, k=0)),
        ("4,4", Estimate(Fraction(1), n=4, k=4)),
        ("1e1,2e1", Estimate(Fraction(1, 2), n=20, k=10)),
        ("-0,4", Estimate(Fraction(0), n=4, k=0)),
        (f"1,{'9' * 18}", Estimate(Fraction(1, 10**18 - 1), n=10**18 - 1, k=1)),
        (f"1,{'9' * 19}", Estimate(Fraction(1, 10**19 - 1), n=10**19 - 1, k=1)),
        (",", None),
    ],
)
def test_counts_in_every_form(fields, estimate):
    assert only("refusal_rate_k,refusal_rate_n", fields, "refusal_rate") == estimate


@pytest.mark.parametrize(
    ("printed", "k", "n", "agrees"),
    [
        ("0.66", 2, 3, False), ("0.7", 2, 3, False), ("0.671", 2, 3, False), ("6.67e-1", 2, 3, True),
        ("6.7e-1", 2, 3, True), ("67e-2", 2, 3, True), ("667e-3", 2, 3, True), ("6.66e-1", 2, 3, False),
        ("0.66666667", 2, 3, True), ("0.66666666", 2, 3, False), ("0.67", 27, 40, True), ("0.68", 27, 40, True),
        ("0.669", 27, 40, False), ("20e-2", 1, 5, True), ("2e-1", 1, 5, True),
    ],
)  # fmt: skip
def test_a_rate_agrees_with_its_counts_to_half_its_last_place(printed, k, n, agrees):
    text = cell("refusal_rate,refusal_rate_k,refusal_rate_n", f"{printed},{k},{n}")
    if agrees:
        assert parse_matrix(text)[0].value("refusal_rate") == Fraction(k, n)
    else:
        assert f"{printed} is not {k}/{n}" in refused(text)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("m,F,0,A,8,1", "params_b: 0 is not valid; expected a number above 0"),
        ("m,F,-1,A,8,1", "params_b: -1 is not valid"),
        ("m,F,1e400,A,8,1", "params_b: 1e400 is not a finite number"),
        ("m,F,1,A,8,", "is_baseline: blank; expected 1 or 0"),
        ("m,F,1,A,8,2", "is_baseline: '2' is not valid"),
        ("m,F,1,,8,1", "quant: blank; expected a name"),
        ("m,F,1,A,8,1,9", "7 fields; expected 6"),
        ("m,F,1,A,8", "5 fields; expected 6"),
        ("m,F,1,A,8,1\nm,F,1,B,4,0\nm,F,1,B,4,0", "m.csv:4: quant: m/B is given twice, first on line 3"),
        ("m,F,1,A,8,1\nm,F,1,B,4,1\nm,F,1,C,4,1", "m.csv:3: is_baseline: 3 baselines of m (lines 2, 3, 4)"),
        ("a,F,1,A,8,1\nm,F,1,A,8,0", "m.csv:3: is_baseline: 0 baselines of m; expected"),
    ],
)
def test_what_is_no_row_is_told(row, told):
    assert told in refused(f"{HEADER}\n{row}\n")


def test_rows_come_by_model_with_the_baseline_first_then_by_bits_then_by_name_and_unknown_bits_as_one():
    rows = ("m,F,1,B,4,0", "m,F,1,C,,0", "m,F,1,Z,0.5,0", "m,F,1,D,9,false", "m,F,1,A2,4,0", "m,F,1,A,8,TRUE",
            "", "a,G,2,Z,1,1")  # fmt: skip
    found = parse_matrix(f"{HEADER}\n" + "\n".join(rows) + "\n")
    assert [row.quant for row in found] == ["Z", "A", "D", "A2", "B", "C", "Z"]


@pytest.mark.parametrize(("text", "value"), [("1e-13", 0), ("6e-13", "1e-12"), ("0.1234567890125", "0.123456789012")])
def test_a_measured_number_has_twelve_places(text, value):
    assert decimal(Fraction(text)) == Fraction(value)


def test_shares_beyond_their_range_are_told_and_others_not():
    text = cell("rouge_l,refusal_rate,file_bytes", "-1.0005,1.0005,7")
    assert dict(beyond_bounds(parse_matrix(text)[0])) == {
        "rouge_l": Fraction("-1.0005"), "refusal_rate": Fraction("1.0005"),
    }  # fmt: skip
    assert not list(beyond_bounds(parse_matrix(cell("rouge_l,refusal_rate", "-1,1"))[0]))
    assert [name for name, _ in beyond_bounds(parse_matrix(cell("rouge_l,refusal_rate", "1,-0.0005"))[0])] == [
        "refusal_rate"
    ]


def test_each_row_is_compared_with_its_baseline_over_its_own_prompts():
    base = Row("m", "F", 1.0, "FP16", None, True, {"rouge_l": Estimate(Fraction(1, 2))})
    build = Row("m", "F", 1.0, "Q2_K", None, False)
    shared = replace(build, quant="Q4", shared=SharedPrompts({"rouge_l": Estimate(Fraction(1, 4))}))
    alone = replace(build, base_model="n")
    found = references((base, build, shared, alone))
    assert found == {
        base.cell: base, build.cell: base, shared.cell: replace(base, metrics=shared.shared.metrics),
    }  # fmt: skip
    assert baselines((base, build, alone)) == {"m": base}
