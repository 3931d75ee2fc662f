"""Official layouts and archives, built from generated rows and read from the shared real ones."""

import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest

from seekr_cl.errors import ConfigError, DataError, OutputError
from seekr_cl.tasks import StreamSpec, Task
from seekr_cl.tasks.benchmarks import BENCHMARKS
from seekr_cl.tasks.benchmarks.checksums import Manifest
from seekr_cl.tasks.benchmarks.fetch import fetch

TRACE, SUPERNI, LONG15, STANDARD5 = (BENCHMARKS[name] for name in ("trace", "superni", "long15", "standard5"))
SIZES = {"train": 500, "eval": 3, "test": 2}


def plain(task, split, edition=""):
    return [{"prompt": f"{edition}{task} {split} {n}?", "answer": f"a{n}"} for n in range(SIZES[split])]


def trace_files(edition="500"):
    return {
        f"TRACE-Benchmark/LLM-CL-Benchmark_{edition}/{task}/{split}.json": plain(task, split, edition)
        for task in TRACE.tasks
        for split in SIZES
    }


def write_zip(path, files, **more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, str | bytes) else json.dumps(content))
        for name, content in more.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def trace_zip(tmp_path):
    files = trace_files("500") | trace_files("Reasoning")
    junk = {f"__MACOSX/{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}": b"\0junk" for name in trace_files()}
    return write_zip(tmp_path / "TRACE-Benchmark.zip", {**junk, **files, "TRACE-Benchmark/.DS_Store": "x"})


def same(folder, task, split):
    return json.loads((folder / task / f"{split}.json").read_text(encoding="utf-8"))


def test_traces_zip(trace_zip, tmp_path):
    seen = []
    done = fetch(TRACE, str(trace_zip), tmp_path / "out", variant="500", progress=lambda *at: seen.append(at))
    assert done.notes == []
    assert done.rows == dict.fromkeys(TRACE.tasks, SIZES)
    assert same(tmp_path / "out", "FOMC", "test") == plain("FOMC", "test", "500")
    assert seen[-1] == ("20Minuten", 8, 8)
    manifest = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert (manifest["name"], manifest["variant"], manifest["source"]) == ("trace", "500", "TRACE-Benchmark.zip")
    assert manifest["sha256"] == hashlib.sha256(trace_zip.read_bytes()).hexdigest()
    assert len(manifest["files"]) == 24
    assert Task.load(tmp_path / "out" / "FOMC", require_test=True).train[0].completion == "a0"
    fetch(TRACE, str(trace_zip), tmp_path / "reasoning", variant="Reasoning")
    assert same(tmp_path / "reasoning", "FOMC", "test") == plain("FOMC", "test", "Reasoning")


def test_what_is_fetched_is_checked_when_read(trace_zip, tmp_path):
    out = tmp_path / "out"
    fetch(TRACE, str(trace_zip), out, variant="500")
    stream = tmp_path / "s.yaml"
    stream.write_text("benchmark: {name: trace, data: out, variant: 500}")
    described = StreamSpec.from_yaml(stream).benchmark.describe({})
    assert described["data"]["source"] == "TRACE-Benchmark.zip"
    assert "data" not in [line["what"] for line in described["deviations"]]
    stream.write_text("benchmark: {name: trace, data: out, variant: 5000}")
    with pytest.raises(DataError, match="variant '500', the stream wants '5000'"):
        StreamSpec.from_yaml(stream)
    file = out / "Py150" / "test.json"
    whole = file.read_bytes()
    for damage, message in ((whole.replace(b"a1", b"a2"), "sha256"), (whole[:-1], "bytes where"), (None, "missing")):
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
        with pytest.raises(DataError, match=rf"Py150/test\.json: .*{message}"):
            Manifest.read(out)
        file.write_bytes(whole)
    marker = out / "benchmark.json"
    text = marker.read_text()
    for broken in ("{", "[]", '{"files": {}}', text.replace("Py150/test.json", "../test.json")):
        marker.write_text(broken)
        with pytest.raises(DataError, match=r"benchmark\.json.*fetch the benchmark again"):
            Manifest.read(out)


def test_rows_are_counted(tmp_path):
    files = trace_files("5000")
    archive = write_zip(tmp_path / "a.zip", files)
    with pytest.raises(DataError, match=r"C-STANCE has 500 training rows and not 5000.*--partial"):
        fetch(TRACE, str(archive), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]  # nothing half written
    done = fetch(TRACE, str(archive), tmp_path / "out", partial=True)
    assert done.notes[0] == "C-STANCE: 500 training rows, not 5000"
    (tmp_path / "s.yaml").write_text("benchmark: {name: trace, data: out, only: [FOMC]}")
    found = StreamSpec.from_yaml(tmp_path / "s.yaml").benchmark.describe({})["deviations"]
    assert [line["here"] for line in found if line["what"] == "data"] == ["FOMC: 500 training rows, not 5000"]


def test_missing_tasks(tmp_path):
    files = {name: rows for name, rows in trace_files().items() if "FOMC" not in name}
    archive = write_zip(tmp_path / "a.zip", files)
    with pytest.raises(DataError, match=r"no task FOMC of variant 500.*--partial"):
        fetch(TRACE, str(archive), tmp_path / "out", variant="500")
    assert "FOMC: not in the source" in fetch(TRACE, str(archive), tmp_path / "p", variant="500", partial=True).notes
    assert list(fetch(TRACE, str(archive), tmp_path / "one", variant="500", tasks=["Py150"]).rows) == ["Py150"]
    with pytest.raises(ConfigError, match="did you mean 'Py150'"):
        fetch(TRACE, str(archive), tmp_path / "x", tasks=["py15"])
    with pytest.raises(ConfigError, match="no variant '50'"):
        fetch(TRACE, str(archive), tmp_path / "x", variant="50")
    with pytest.raises(OutputError, match="already holds"):
        fetch(TRACE, str(archive), tmp_path / "one", variant="500")


def olora(root, tasks):
    """O-LoRA's repository: categories, labels, dev for eval, instructions apart."""
    files = {
        "configs/instruction_config.json": {
            category: [
                {"instruction_type": "few-shot", "instruction": "no"},
                {"instruction_type": "zero-shot", "instruction": f"Say what {category} says.\n"},
            ]
            for category in ("TC", "SC", "NLI", "QQP", "BoolQA", "MultiRC", "WiC")
        }
    }
    for category, task in tasks:
        folder = f"CL_Benchmark/{category}/{task}"
        files[f"{folder}/labels.json"] = ["yes", "no"]
        for split, name in (("train", "train"), ("eval", "dev"), ("test", "test")):
            files[f"{folder}/{name}.json"] = [{"sentence": f"{task} {split} {{0}}", "label": "no"}] * 3
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


STANDARD = [("TC", "dbpedia"), ("SC", "amazon"), ("TC", "yahoo"), ("TC", "agnews"), ("SC", "yelp")]


def test_oloras_folders(tmp_path, shared):
    root = olora(tmp_path / "O-LoRA", STANDARD)
    olora(root, [("SC", "amazon_2000")])  # a sample that lies beside the whole
    done = fetch(STANDARD5, str(root), tmp_path / "out")
    assert done.rows["yelp"] == {"train": 3, "eval": 3, "test": 3}
    row = same(tmp_path / "out", "agnews", "eval")[0]
    assert row == {
        "prompt": "Task:TC\nDataset:agnews\nSay what TC says.\nOption: yes, no \nagnews eval {0}\nAnswer:",
        "answer": "no",
    }
    with pytest.raises(DataError, match=r"needs one instruction_config\.json, has 0; give the whole repository"):
        fetch(STANDARD5, str(root / "CL_Benchmark"), tmp_path / "x")
    # The shared rows were made of the real files with the same template.
    real = same(shared / "data" / "long_sequence", "agnews", "test")[0]["prompt"]
    head, sentence = real.split(" \n", 1)
    labels = json.loads((shared / "data/long_sequence/orders.json").read_text())["labels"]["agnews"]
    instruction = head.removeprefix("Task:TC\nDataset:agnews\n").removesuffix(f"Option: {', '.join(labels)}")
    files = {
        "configs/instruction_config.json": {"TC": [{"instruction_type": "zero-shot", "instruction": instruction}]},
        "CL_Benchmark/TC/agnews/labels.json": labels,
    }
    rows = [{"sentence": sentence.removesuffix("\nAnswer:"), "label": "x"}]
    files |= {f"CL_Benchmark/TC/agnews/{split}.json": rows for split in ("train", "test")}
    fetch(STANDARD5, str(write_zip(tmp_path / "o.zip", files)), tmp_path / "again", tasks=["agnews"])
    assert same(tmp_path / "again", "agnews", "test")[0]["prompt"] == real


def natural(count, title="A title"):
    instances = [
        {"id": str(n), "input": f"in {n}", "output": [f" out {n}", "other"][: 1 + n % 2]} for n in range(count)
    ]
    return {"Contributors": ["x"], "Definition": ["Do it."], "Categories": [title], "Instances": instances}


def test_sapts_folders(tmp_path):
    root = tmp_path / "SuperNI"
    for task in SUPERNI.orders["sapt1"]:
        (root / f"{task}_some_title").mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (root / f"{task}_some_title" / f"{split}.json").write_text(json.dumps(natural(4)))
    done = fetch(SUPERNI, str(root), tmp_path / "out")
    assert done.notes == ["task195: not in the source"]  # SAPT's orders do without it
    assert same(tmp_path / "out", "task002", "test")[1] == {
        "prompt": "Definition: Do it.\n\nNow complete the following example -\nInput: in 1\nOutput:",
        "answer": "out 1",
    }
    assert Task.load(tmp_path / "out" / "task002").test[1].references == ("out 1", "other")


SAPTS_NAMES = {"BoolQA": "boolq", "SST-2": "sst2"}


def sapts_repository():
    """SAPT's own archive: both benchmarks, their configs, and what its models made of the same tasks."""
    files = {}
    for task in LONG15.tasks:
        called = SAPTS_NAMES.get(task, task.casefold())
        definition = [] if task == "COPA" else [f"Say what {task} says.\n"]
        for split in ("train", "dev", "test"):
            rows = [{"input": f"{task} {{0}} {split} {number}\n", "output": "no"} for number in range(3)]
            content = {"Definition": definition, "Positive Examples": [], "Negative Examples": [], "Instances": rows}
            files[f"SAPT-main/CL_Benchmark/Long_Sequence/{called}/{split}.json"] = content
            files[f"SAPT-main/configs/Long_Sequence/{called}/{split}_tasks.json"] = {"Long_Sequence": []}
            for model in ("llama", "t5"):
                made = content | {"Instances": [{"input": "made up", "output": "made up"}]}
                files[f"SAPT-main/generated_data/lora_gen_long_{model}/Long_Sequence/{called}/{split}.json"] = made
    for task in SUPERNI.orders["sapt1"]:
        for split in ("train", "dev", "test"):
            files[f"SAPT-main/CL_Benchmark/SuperNI/{task}_some_title/{split}.json"] = natural(4)
            files[f"SAPT-main/generated_data/lora_gen_superni_t5/SuperNI/{task}_some_title/{split}.json"] = natural(2)
    return files


def test_sapts_archive_has_both_benchmarks(tmp_path):
    archive = write_zip(tmp_path / "SAPT-main.zip", sapts_repository())
    done = fetch(LONG15, str(archive), tmp_path / "long")
    assert (done.notes, set(done.rows)) == ([], set(LONG15.tasks))
    assert done.rows["COPA"] == {"train": 3, "eval": 3, "test": 3}
    # SAPT's loader: the definition stripped, a line of its own; the input as it is; "Output: " without its last space.
    row = {"prompt": "Say what BoolQA says.\nBoolQA {0} test 1\n\nOutput:", "answer": "no"}
    assert same(tmp_path / "long", "BoolQA", "test")[1] == row
    assert same(tmp_path / "long", "COPA", "eval")[0]["prompt"] == "COPA {0} dev 0\n\nOutput:"
    fetch(STANDARD5, str(archive), tmp_path / "standard")
    assert same(tmp_path / "standard", "yelp", "train") == same(tmp_path / "long", "yelp", "train")
    fetch(SUPERNI, str(archive), tmp_path / "superni")
    assert len(same(tmp_path / "superni", "task875", "test")) == 4


@pytest.mark.parametrize("definition", [["Do it. "], " Do it.\n", ["Do it.", "Or else."]])
def test_a_definition_is_stripped(definition, tmp_path):
    content = natural(4) | {"Definition": definition}
    for benchmark, task, head in (
        (SUPERNI, "task1572", "Definition: Do it.\n\nNow complete the following example -\nInput: "),
        (LONG15, "CB", "Do it.\n"),
    ):
        files = {f"x/{task}/{split}.json": content for split in ("train", "test")}
        out = tmp_path / task
        fetch(benchmark, str(write_zip(tmp_path / f"{task}.zip", files)), out, tasks=[task])
        assert same(out, task, "test")[0]["prompt"] == f"{head}in 0\nOutput:"


def test_natural_instructions_files_are_split(tmp_path):
    folder = tmp_path / "natural-instructions" / "tasks"
    folder.mkdir(parents=True)
    for task in SUPERNI.orders["3"]:
        (folder / f"{task}_of_a_title.json").write_text(json.dumps(natural(1300)))
    done = fetch(SUPERNI, str(folder), tmp_path / "out")
    assert done.rows["task195"] == {"train": 1000, "eval": 100, "test": 100}
    assert "task195: split drawn by seekr-cl (seed 0), SAPT does not publish its draw" in done.notes
    prompts = [{row["prompt"] for row in same(tmp_path / "out", "task195", split)} for split in SIZES]
    assert len(set.union(*prompts)) == 1200  # no row in two splits
    fetch(SUPERNI, str(folder), tmp_path / "again")
    assert same(tmp_path / "again", "task195", "test") == same(tmp_path / "out", "task195", "test")


@pytest.mark.parametrize(
    ("benchmark", "pack", "variant"),
    [("trace", "trace", "5000"), ("trace", "trace_reasoning", "reasoning"), ("superni", "superni", None),
     ("long15", "long_sequence", None)],
)  # fmt: skip
def test_real_rows_through_the_same_readers(benchmark, pack, variant, shared, tmp_path):
    folder = shared / "data" / pack
    done = fetch(BENCHMARKS[benchmark], str(folder), tmp_path / "out", variant=variant, partial=True)
    here = {path.name for path in folder.iterdir() if path.is_dir()}
    assert set(done.rows) == here
    for task, rows in done.rows.items():
        for split, count in rows.items():
            assert count == len(same(folder, task, split))
            assert same(tmp_path / "out", task, split) == same(folder, task, split)
        ours, theirs = (Task.load(place / task).test for place in (tmp_path / "out", folder))
        # Where a row has one reference only, the reader adds nothing to it.
        assert [one.references or (one.completion,) for one in ours] == [
            one.references or (one.completion,) for one in theirs
        ]


def bad_zip(path, name="t/x.json", **info):
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo(name)
        for key, value in info.items():
            setattr(member, key, value)
        archive.writestr(member, "[]")
    return path


def bad_tar(path, name="t/x.json", kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0
        archive.addfile(member, io.BytesIO())
    return path


def bomb(path, kind):
    zeros = bytes(1 << 25)
    if kind == "zip":
        # Beside something that does not shrink, so that the whole looks harmless.
        return write_zip(path, {"TRACE/FOMC/train.json": zeros, "noise.bin": os.urandom(1 << 20)})
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("TRACE/FOMC/train.json")
        member.size = len(zeros)
        archive.addfile(member, io.BytesIO(zeros))
    return path


HOSTILE = {
    "zip slip": (lambda path: bad_zip(path, "../x.json"), "leads out"),
    "absolute": (lambda path: bad_zip(path, "/etc/x.json"), "leads out"),
    "backslashes": (lambda path: bad_zip(path, "a\\..\\x.json"), "leads out"),
    "drive": (lambda path: bad_zip(path, "C:x.json"), "leads out"),
    "link": (lambda path: bad_zip(path, external_attr=0o120777 << 16), "is a link"),
    "tar slip": (lambda path: bad_tar(path, "a/../../x.json"), "leads out"),
    "tar link": (lambda path: bad_tar(path, kind=tarfile.SYMTYPE), "not a plain file"),
    "tar device": (lambda path: bad_tar(path, kind=tarfile.CHRTYPE), "not a plain file"),
    "zip bomb": (lambda path: bomb(path, "zip"), "would unpack"),
    "tar bomb": (lambda path: bomb(path, "tar"), "would unpack"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><title>Sign in</title>"), "a web page"),
    "text": (lambda path: path.write_text("hello"), "neither zip nor tar"),
    "empty": (lambda path: write_zip(path, {}), "no task"),
    "not there": (lambda path: None, "does not exist"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_archives_are_refused(make, message, tmp_path):
    path = tmp_path / "archive"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        fetch(TRACE, str(path), tmp_path / "out", variant="500")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {one.name for one in tmp_path.iterdir()} <= {"archive"}


def test_a_damaged_member_is_named(trace_zip, tmp_path):
    content = bytearray(trace_zip.read_bytes())
    with zipfile.ZipFile(trace_zip) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith("_500/FOMC/train.json"))
    for offset in range(60, 90):
        content[info.header_offset + len(info.filename) + offset] ^= 0xFF
    trace_zip.write_bytes(content)
    with pytest.raises(DataError, match=r"FOMC/train\.json: damaged"):
        fetch(TRACE, str(trace_zip), tmp_path / "out", variant="500")


BAD_ROWS = {
    "json": ("[{", r"invalid JSON"),
    "kind": ('"text"', r"must be a list of rows"),
    "row": (
        '[{"prompt": "p", "answr": "a"}]',
        r"train\.json row 1: no 'completion' or 'answer'.*did you mean 'answer'",
    ),
    "number": ('[{"prompt": "p", "answer": 7}]', r"row 1: 'answer' must be a string"),
    "sentence": ('[{"sentence": "p", "label": "a"}]', r"needs labels\.json"),
    "natural": ('{"Definition": "d"}', r"must hold 'Definition' and 'Instances'"),
    "output": ('{"Definition": "d", "Instances": [{"input": "i", "output": []}]}', r"instance 1: input must be text"),
    "definition": ('{"Definition": null, "Instances": []}', r"must hold 'Definition' and 'Instances'"),
    "definitions": ('{"Definition": [7], "Instances": []}', r"must hold 'Definition' and 'Instances'"),
}


@pytest.mark.parametrize(("text", "message"), BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_bad_rows_are_named(text, message, tmp_path):
    files = {f"t/FOMC/{split}.json": text for split in ("train", "test")}
    archive = write_zip(tmp_path / "a.zip", files)
    with pytest.raises(DataError, match=message):
        fetch(TRACE, str(archive), tmp_path / "out", variant="reasoning", tasks=["FOMC"])


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": ""}]
    archive = write_zip(tmp_path / "a.zip", {f"t/FOMC/{split}.json": rows for split in ("train", "test")})
    done = fetch(TRACE, str(archive), tmp_path / "out", variant="reasoning", tasks=["FOMC"])
    assert (done.rows, done.notes) == (
        {"FOMC": {"train": 1, "test": 1}},
        ["FOMC: 2 rows without an answer left out"],
    )


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path == "/short.zip":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
            elif self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.server_address[1]}"
        one.shutdown()
        thread.join()


def test_from_a_server(trace_zip, server, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    digest, seen = hashlib.sha256(trace_zip.read_bytes()).hexdigest(), []
    url, size = f"{server}/{trace_zip.name}", trace_zip.stat().st_size
    fetch(
        TRACE, url, tmp_path / "out", variant="500", sha256=digest.upper(), progress=lambda *at: seen.append(at)
    )  # fmt: skip
    assert [at for at in seen if at[0] == "download"][-1] == ("download", size, size)
    assert Manifest.read(tmp_path / "out").origin()["source"] == url
    refused = {
        url: ("0" * 64, "sha256 is"),
        f"{server}/none.zip": (None, "cannot be downloaded.*[Nn]ot found"),
        f"{server}/short.zip": (None, "4 of 1000 bytes|cannot be downloaded"),
        f"{server}/moved": (None, "cannot be downloaded"),
        "http://127.0.0.1:1/a.zip": (None, "cannot be downloaded"),
    }
    for address, (wanted, message) in refused.items():
        with pytest.raises(DataError, match=message):
            fetch(TRACE, address, tmp_path / "no", variant="500", sha256=wanted)
    assert not (tmp_path / "no").exists()
    assert list((tmp_path / "tmp").iterdir()) == []  # nothing of a download stays


def test_links_in_a_folder_are_not_followed(tmp_path):
    outside = tmp_path / "secret.json"
    outside.write_text(json.dumps(plain("FOMC", "train")))
    folder = tmp_path / "src" / "FOMC"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        Path(folder / f"{split}.json").symlink_to(outside)
    with pytest.raises(DataError, match="no task FOMC"):
        fetch(TRACE, str(tmp_path / "src"), tmp_path / "out", variant="reasoning", tasks=["FOMC"])
