"""Logs in the forms that people have: one content, however it is written, is one `Logs`."""

import csv
from itertools import pairwise

import numpy as np
import pytest
from audit_logs import CLASSES, EXPERTS, SIZE, TARGETS, make, write

from calmoe_jax.audit import LogError, as_logs, csv_source, predictions, read_logs
from calmoe_jax.cli import main

TOTAL = SIZE + TARGETS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forms")


def whole():
    """Logs with everything that there may be."""
    arrays = make()
    drawn = np.arange(TOTAL) % 4 == 0
    labels = np.where(arrays["targets"] & ~drawn, -1, arrays["labels"])
    time = np.datetime64("2026-01-01", "us") + np.arange(TOTAL) * np.timedelta64(3600 * 10**6, "us")
    return arrays | {
        "labels": labels,
        "clusters": np.array([f"user, {i // 2}" for i in range(TOTAL)]),
        "where": np.arange(TOTAL) % 50 != 9,
        "time": time,
        "drawn_probability": np.where(labels >= 0, 0.25, np.nan),
    }


def same(found, expected, atol=2e-6):
    found, expected = (x._replace(files=()) for x in (found, expected))
    for name, a, b in zip(found._fields, found, expected, strict=True):
        if b is None or isinstance(b, bool | tuple):
            assert a == b, name
        elif b.dtype.kind == "f":
            np.testing.assert_allclose(a, b, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def wide(arrays):
    """A column for each number."""
    columns = {}
    forms = {"routing_weights": "weight_{}", "routing_logits": "routing_logit_{}",
             "expert_indices": "index_{}", "probs": "prob_{}", "logits": "logit_{}",
             "label_probs": "label_prob_{}", "expert_probs": "expert_{}_prob_{}",
             "expert_logits": "expert_{}_logit_{}"}  # fmt: skip
    singular = {"labels": "label", "targets": "target", "clusters": "cluster"}
    for name, values in arrays.items():
        if name not in forms:
            columns[singular.get(name, name)] = values
            continue
        for index in np.ndindex(values.shape[1:]):
            columns[forms[name].format(*index)] = values[(slice(None), *index)]
    return columns


def write_csv(path, columns, delimiter=",", empty=True):
    names = list(columns)
    columns = {n: x.astype("M8[us]") if x.dtype.kind == "M" else x for n, x in columns.items()}
    lists = [["" if empty and text in ("nan", "-1") else text for text in map(str, values.tolist())]
             for values in columns.values()]  # fmt: skip
    with path.open("w", newline="") as file:
        out = csv.writer(file, delimiter=delimiter)
        out.writerow(names)
        out.writerows(zip(*lists, strict=True))
    return path


def write_parquet(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def column(name, values):
        if name in ("label", "labels"):
            return pyarrow.array([None if x < 0 else int(x) for x in values])
        return pyarrow.array(values.tolist() if values.dtype.kind != "M" else values)

    parquet.write_table(pyarrow.table({n: column(n, x) for n, x in columns.items()}), path)
    return path


def as_text(arrays):
    """Times as texts with a zone, as a CSV file has them."""
    return arrays | {"time": np.array([f"{t}Z" for t in arrays["time"]])}


def in_npz(folder):
    return write(folder, whole(), "a.npz")


def wide_in_npz(folder):
    return write(folder, wide(whole()), "b.npz")


def in_csv(folder):
    return write_csv(folder / "c.csv", wide(as_text(whole())))


def in_csv_with_semicolons(folder):
    return write_csv(folder / "d.csv", wide(as_text(whole())), delimiter=";", empty=False)


def in_parquet(folder):
    return write_parquet(folder / "e.parquet", whole())


def wide_in_parquet(folder):
    return write_parquet(folder / "f.parquet", wide(as_text(whole())))


def logits_in_npz(folder):
    arrays = whole()
    shift = np.random.RandomState(1).randn(TOTAL, 1)
    arrays["routing_logits"] = np.log(arrays.pop("routing_weights").astype(float)) + shift
    arrays["expert_logits"] = (
        np.log(arrays.pop("expert_probs").astype(float)) - 7 * shift[..., None]
    )
    return write(folder, arrays, "g.npz")


def logits_in_csv(folder):
    arrays = as_text(whole())
    arrays["expert_logits"] = np.log(arrays.pop("expert_probs").astype(float)) + 100
    return write_csv(folder / "h.csv", wide(arrays))


def in_three_files(folder):
    arrays = whole()
    bounds = [0, 100, 300, TOTAL]
    parts = [{n: x[a:b] for n, x in arrays.items()} for a, b in pairwise(bounds)]
    return [
        write(folder, parts[0], "i.npz"),
        write_csv(folder / "j.csv", wide(as_text(parts[1]))),
        write(folder, wide(parts[2]), "k.npz"),
    ]


def in_a_folder(folder):
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    arrays = whole()
    for i, rows in enumerate((slice(0, 130), slice(130, TOTAL))):
        write(parts, {n: x[rows] for n, x in arrays.items()}, f"part-{i:06d}.npz")
    return parts


@pytest.mark.every_case
@pytest.mark.parametrize(
    "written",
    [in_npz, wide_in_npz, in_csv, in_csv_with_semicolons, in_parquet, wide_in_parquet,
     logits_in_npz, logits_in_csv, in_three_files, in_a_folder],
)  # fmt: skip
def test_one_content_is_one_logs(folder, written):
    same(read_logs(written(folder)), as_logs(whole()))


def test_as_logs_changes_no_array_of_the_caller():
    arrays = whole()
    arrays["expert_probs"] *= 1.0005
    before = {name: x.copy() for name, x in arrays.items()}
    as_logs(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, before[name])


def test_slots_in_csv_are_those_in_npz(folder):
    arrays = make()
    arrays["expert_indices"] = np.tile(np.array([5, 0, 2]), (TOTAL, 1))
    arrays["routing_weights"][:, 1] = 0
    arrays["routing_weights"] /= arrays["routing_weights"].sum(axis=1, keepdims=True)
    arrays["expert_probs"][:, 1] = np.nan  # an empty cell
    expected = read_logs(write(folder, arrays))
    assert expected.expert_probs.shape == (TOTAL, 6, CLASSES)
    same(read_logs(write_csv(folder / "slots.csv", wide(arrays))), expected)
    # slots of weight 0 have no index
    arrays["expert_indices"][:, 1] = -1
    same(read_logs(write_csv(folder / "slots.csv", wide(arrays))), expected)
    # a file that never chose the last expert
    few = {name: x[:50] for name, x in arrays.items()}
    few["expert_indices"] = few["expert_indices"] % 5
    joined = read_logs([write(folder, few, "few.npz"), write(folder, arrays, "all.npz")])
    assert joined.expert_probs.shape == (TOTAL + 50, 6, CLASSES)
    assert (joined.expert_probs[:50, 5] == np.float32(1 / CLASSES)).all()
    assert (joined.routing_weights[:50, 5] == 0).all()


def test_names_of_their_own(folder):
    arrays = whole()
    columns = wide(as_text(arrays))
    theirs = {}
    for name, values in columns.items():
        name = name.replace("expert_", "e").replace("_prob_", "c").replace("weight_", "gate.")
        theirs[{"label": "y", "time": "seen at"}.get(name, name)] = values
    given = {"expert_{}_prob_{}": "e{}c{}", "weight_{}": "gate.{}", "label": "y", "time": "seen at"}
    path = write_csv(folder / "theirs.csv", theirs)
    same(read_logs(path, columns=given), as_logs(arrays))
    for columns, message in (
        (given | {"label": "z"}, r"theirs.csv lacks z; it has gate.0, .* 9 more\."),
        (given | {"lable": "y"}, "columns must rename to one of .*; got lable=y"),
        (given | {"weight_{}": "gate"}, r"as often on both sides, got weight_\{\}=gate"),
        (given | {"labels": "target"}, "has y and target, of which one must be left out"),
    ):
        with pytest.raises(LogError, match=message):
            read_logs(path, columns=columns)


@pytest.mark.parametrize("name", ["probs", "logits"])
def test_the_aggregate_alone_is_one_expert(folder, name):
    arrays = make()
    mixed = np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])
    values = mixed if name == "probs" else np.log(mixed) + 3
    alone = {name: values, "labels": arrays["labels"], "targets": arrays["targets"]}
    for path in (write(folder, alone, "al.npz"), write_csv(folder / "al.csv", wide(alone))):
        found = read_logs(path)
        assert found.aggregate_only
        np.testing.assert_allclose(found.expert_probs[:, 0], mixed, atol=2e-6)
        assert (found.routing_weights == 1).all()
    # the aggregate beside the experts is not read
    both = read_logs(write(folder, arrays | {name: values}, "both.npz"))
    assert not both.aggregate_only
    bad = alone | {name: np.where(np.arange(TOTAL)[:, None] == 7, np.nan, values)}
    with pytest.raises(LogError, match=f"{name} must be .* got nan at example 7, class 0"):
        read_logs(write(folder, bad, "bad.npz"))


def test_soft_labels(folder):
    arrays = make()
    votes = np.random.RandomState(0).multinomial(10, np.ones(CLASSES) / CLASSES, TOTAL) / 10
    votes[SIZE:] = np.nan
    soft = {n: x for n, x in arrays.items() if n != "labels"} | {"label_probs": votes}
    found = read_logs(write(folder, soft))
    same(read_logs(write_csv(folder / "soft.csv", wide(soft))), found)
    np.testing.assert_allclose(found.label_probs[:SIZE], votes[:SIZE], atol=1e-6)
    assert (found.label_probs[SIZE:] == 0).all()
    assert (found.labels[SIZE:] == -1).all()
    drawn = votes[np.arange(SIZE), found.labels[:SIZE]]
    assert (drawn > 0).all()
    # each class is drawn as often as its shares say, up to three standard errors
    shares = np.bincount(found.labels[:SIZE], minlength=CLASSES) / SIZE
    error = np.sqrt((votes[:SIZE] * (1 - votes[:SIZE])).mean(axis=0) / SIZE)
    assert (np.abs(shares - votes[:SIZE].mean(axis=0)) < 3 * error).all()
    assert found.notes == ("classes were drawn once from label_probs for what needs a class",)
    given = read_logs(write(folder, soft | {"labels": np.where(arrays["targets"], -1, 2)}))
    assert given.notes == ()
    assert (given.labels[:SIZE] == 2).all()
    for edit, message in (
        (
            {"labels": arrays["labels"]},
            "must be known where labels are, .* example 240",
        ),
        ({"label_probs": 2 * votes}, "label_probs must be .* got a sum of 2 at example 0"),
        ({"label_probs": votes[:, 1:]}, "label_probs must be of shape"),
    ):
        with pytest.raises(LogError, match=message):
            read_logs(write(folder, soft | edit))


@pytest.mark.parametrize("at_a_time", [2**22, 100])
def test_rows_off_by_a_thousandth_are_rescaled_and_counted(folder, monkeypatch, at_a_time):
    monkeypatch.setattr(predictions, "_AT_A_TIME", at_a_time)
    arrays = make()
    off = arrays["expert_probs"].astype(np.float64)
    off[3:8, 1] *= 1.0005
    off[TOTAL - 1, 2] *= 0.9991
    gates = arrays["routing_weights"].copy()
    gates[5] *= 1.0002
    found = read_logs(write(folder, arrays | {"expert_probs": off, "routing_weights": gates}))
    assert found.notes == (
        "1 rows of routing_weights did not sum to 1 and were rescaled; the largest distance was "
        "2.0e-04",
        "6 rows of expert_probs did not sum to 1 and were rescaled; the largest distance was "
        "9.0e-04",
    )
    same(found._replace(notes=()), as_logs(make()))
    assert read_logs(write(folder, make())).notes == ()
    halves = [write(folder, {n: x[s] for n, x in (arrays | {"expert_probs": off}).items()}, f)
              for s, f in ((slice(0, 300), "1.npz"), (slice(300, TOTAL), "2.npz"))]  # fmt: skip
    assert "6 rows of expert_probs" in read_logs(halves).notes[0]
    off[9, 0] *= 1.002
    with pytest.raises(LogError, match=r"got a sum of 1.002 at example 9, expert 0\."):
        read_logs(write(folder, arrays | {"expert_probs": off}))


def test_half_precision_is_rescaled(folder):
    arrays = make()
    coarse = arrays | {"expert_probs": arrays["expert_probs"].astype(np.float16)}
    found = read_logs(write(folder, coarse))
    np.testing.assert_allclose(found.expert_probs.sum(axis=-1), 1, atol=1.1e-5)
    assert "rows of expert_probs" in found.notes[0]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.arange(TOTAL), np.arange(TOTAL)),
        (np.arange(TOTAL).astype(str), np.arange(TOTAL)),
        (np.arange(TOTAL) / 4, np.arange(TOTAL) / 4),
        (np.full(TOTAL, "2026-02-03"), np.datetime64("2026-02-03", "us")),
        (np.full(TOTAL, "2026-02-03 04:05:06.5"), np.datetime64("2026-02-03T04:05:06.5", "us")),
        (np.full(TOTAL, "2026-02-03T04:05+02:00"), np.datetime64("2026-02-03T02:05", "us")),
        (np.full(TOTAL, np.datetime64("2026-02-03", "D")), np.datetime64("2026-02-03", "us")),
        (
            np.full(TOTAL, np.datetime64("2026-02-03T04", "ns")),
            np.datetime64("2026-02-03T04", "us"),
        ),
    ],
)
@pytest.mark.every_case
def test_times(folder, times, expected):
    found = as_logs(make() | {"time": times}).time
    np.testing.assert_array_equal(found, np.broadcast_to(expected, TOTAL))
    csv_file = write_csv(folder / "time.csv", wide(make() | {"time": times}))
    np.testing.assert_array_equal(read_logs(csv_file).time, found)
    if times.dtype.kind == "M":
        stored = write_parquet(folder / "time.parquet", make() | {"time": times})
        np.testing.assert_array_equal(read_logs(stored).time, found)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"time": np.where(np.arange(TOTAL) == 5, np.nan, 1)}, "time must be known, .* example 5"),
        ({"time": np.array(["NaT"] * TOTAL, "datetime64[s]")}, "time must be known, .* example 0"),
        (
            {"time": np.full(TOTAL, "yesterday")},
            "dates or numbers, got 'yesterday' at example 0",
        ),
        ({"time": np.ones(TOTAL, bool)}, "time must be dates or numbers"),
        ({"drawn_probability": np.full(TOTAL, 1.5)}, r"in \(0, 1\] .*, got 1.5 at example 240"),
        ({"drawn_probability": np.zeros(TOTAL)}, r"drawn_probability must be in \(0, 1\]"),
        ({"drawn_probability": np.full(TOTAL, np.nan)}, "got nan at example 240"),
        ({"drawn_probability": np.full(TOTAL, "often")}, "drawn_probability must be numbers"),
        ({"expert_logits": np.zeros((TOTAL, EXPERTS, CLASSES))}, "expert_probs and expert_logits"),
        ({"routing_logits": np.zeros((TOTAL, EXPERTS))}, "has routing_weights and routing_logits"),
        ({"label": np.zeros(TOTAL, int)}, "has labels and label, of which one must be left out"),
        ({"expert_0_prob_1": np.zeros(TOTAL)}, "has expert_probs and expert_0_prob_1"),
        ({"label_prob_1": np.zeros(TOTAL)}, "lacks label_prob_0, but has label_prob_1"),
        ({"time": np.zeros(3)}, r"time must be of shape \(420,\)"),
    ],
)
def test_what_is_wrong_is_named(folder, edit, message):
    with pytest.raises(LogError, match=message):
        read_logs(write(folder, make() | edit))


def break_cell(path, row, column, text):
    lines = list(csv.reader(path.read_text().splitlines()))
    lines[row + 1][lines[0].index(column)] = text
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def test_a_number_and_its_array_are_one_too_many_in_any_order(folder):
    arrays = make()
    columns = {"weight_1": arrays["labels"]} | arrays
    with pytest.raises(LogError, match="has weight_1 and routing_weights, of which one"):
        read_logs(write(folder, columns))
    twice = wide(arrays) | {"w": np.zeros(TOTAL)}
    with pytest.raises(LogError, match="has weight_1 and w, of which one"):
        read_logs(write(folder, twice), columns={"weight_1": "w"})


def test_csv_files_are_read_in_blocks(folder, monkeypatch):
    monkeypatch.setattr(csv_source, "_ROWS", 7)
    path = write_csv(folder / "blocks.csv", wide(as_text(whole())))
    same(read_logs(path), as_logs(whole()))
    break_cell(path, 100, "weight_2", "x")
    with pytest.raises(LogError, match="weight_2 must be a number, got 'x' at example 100"):
        read_logs(path)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("expert_1_prob_2", "much"), "expert_1_prob_2 must be a number, got 'much' at example 4"),
        (("expert_1_prob_2", ""), "expert_probs must .* got nan at example 4, expert 1, class 2"),
        (("expert_1_prob_2", "7"), "expert_probs must .* got a sum of .* at example 4, expert 1"),
        (("weight_0", "-1"), "routing_weights must .* got -1 at example 4, expert 0"),
        (("label", "cat"), "labels must be numbers, got 'cat' at example 4"),
        (("label", "1.5"), "labels must be whole numbers"),
        (("label", "9"), r"labels must be in \[-1, 3\], got 9 at example 4"),
        (("target", "maybe"), "targets must be true or false, got 'maybe' at example 4"),
        (("cluster", ""), "clusters must be known for every example, got none at example 4"),
        (("time", ""), "time must be known for every example, got none at example 4"),
        (("drawn_probability", "often"), "drawn_probability must be numbers, got 'often'"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named(folder, edit, message):
    path = write_csv(folder / "wrong.csv", wide(as_text(whole())))
    break_cell(path, 4, *edit)
    with pytest.raises(LogError, match=message) as caught:
        read_logs(path)
    assert "wrong.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def contents():
    """Files that are no logs, by the words of the error."""
    good = ",".join(wide(make()))
    pattern = {
        "none.csv": (b"", "no line of names"),
        "names.csv": (good.encode(), "must be"),
        "short.csv": (f"{good}\n1,2\n".encode(), "line 2 has 2 cells, not 17"),
        "twice.csv": (b"label,label\n1,2\n", "two columns label"),
        "bytes.csv": (bytes(range(128, 256)), "cannot be read"),
        "other.csv": (b"a,b\n1,2\n", "lacks expert_probs; it has a, b"),
        "gap.csv": (b"weight_0,expert_0_prob_0,expert_0_prob_2,label\n", "lacks expert_0_prob_1"),
        "huge.csv": (b"prob_0,prob_9999999,label\n", "at most 1000000 columns"),
        "near.csv": (b"label,expert_0_probs_0,weight_0\n", "mean expert_0_prob_0"),
        "quote.csv": (b'prob_0,prob_1,label\n0.5,"0.5,1\n', "line 2 has 2 cells, not 3"),
        "text.parquet": (b"no archive", "cannot be read"),
        "none.parquet": (b"", "cannot be read"),
    }
    return [(name, *rest) for name, rest in pattern.items()]


@pytest.mark.every_case
@pytest.mark.parametrize(("name", "content", "message"), contents())
def test_a_broken_file_is_one_line_and_exit_code_2(folder, capsys, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (folder / name).write_bytes(content)
    assert main(["audit", str(folder / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert name in error
    assert len(error.splitlines()) == 1


def test_files_that_do_not_fit_together_are_named(folder):
    arrays = make()
    first = write(folder, arrays, "first.npz")
    more = arrays | {"clusters": np.arange(TOTAL)}
    named = arrays | {"clusters": np.full(TOTAL, "a")}
    for other, message in (
        (more, "second.npz lacks|first.npz lacks clusters, which .*second.npz has"),
        ({n: x for n, x in arrays.items() if n != "targets"}, "second.npz lacks targets"),
        (
            arrays | {"expert_probs": np.full((TOTAL, EXPERTS, 2), 0.5),
                      "labels": 0 * arrays["labels"]},
            "second.npz has 2 classes, .*first.npz has 4",
        ),
        (
            arrays | {"expert_probs": arrays["expert_probs"][:, :1],
                      "routing_weights": np.ones((TOTAL, 1))},
            "second.npz has 1 experts, .*first.npz has 3",
        ),
        (change_label(arrays, 3, 77), "second.npz: labels must be .* got 77 at example 3"),
    ):  # fmt: skip
        with pytest.raises(LogError, match=message):
            read_logs([first, write(folder, other, "second.npz")])
    with pytest.raises(LogError, match=r"has clusters of <U1, .* of int64"):
        read_logs([write(folder, more, "ints.npz"), write(folder, named, "second.npz")])
    with pytest.raises(LogError, match="at least one file, got none"):
        read_logs([])
    unlabelled = {n: x[SIZE:] for n, x in arrays.items()}
    with pytest.raises(LogError, match=r"only\.npz and 1 more: labels must be known"):
        read_logs([write(folder, unlabelled, "only.npz")] * 2)


def change_label(arrays, row, value):
    return arrays | {"labels": np.where(np.arange(TOTAL) == row, value, arrays["labels"])}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.every_case
def test_logits_must_be_numbers(folder, value):
    arrays = make()
    arrays["expert_logits"] = np.log(arrays.pop("expert_probs"))
    arrays["expert_logits"][2, 1, 3] = -np.inf  # an impossible class
    found = read_logs(write(folder, arrays))
    assert found.expert_probs[2, 1, 3] == 0
    np.testing.assert_allclose(found.expert_probs.sum(axis=-1), 1, atol=1e-6)
    arrays["expert_logits"][5, 1, 2] = value
    with pytest.raises(LogError, match=f"got {value} at example 5, expert 1, class 2"):
        read_logs(write(folder, arrays))
    arrays["expert_logits"][5, 1] = -np.inf
    with pytest.raises(LogError, match=r"a finite one .* got none at example 5, expert 1"):
        read_logs(write(folder, arrays))
    arrays["where"] = np.arange(TOTAL) != 5
    assert (read_logs(write(folder, arrays)).expert_probs[5, 1] == np.float32(0.25)).all()
