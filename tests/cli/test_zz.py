import json, shutil
from conftest import FAST, fingerprint, write_stream, save_model, write_task
def test_x(world, seekr, tmp_path):
    before = fingerprint(world.folder)
    f = open("/tmp/explore.txt", "w")
    def t(label, *a):
        d = seekr(*a)
        now = fingerprint(tmp_path)
        left = [k for k in now if not k.startswith("in")]
        for k in ("o", "m"):
            shutil.rmtree(tmp_path / k, ignore_errors=True)
        err = d.err if len(d.err) < 900 else d.err[:100] + " ... " + d.err[-500:]
        print(f"## {label}: {d.code} left={left[:3]} changed={fingerprint(world.folder) != before}\n{err}", file=f, flush=True)
    def L(label, *extra, model=world.base, task=world.first, memory="m", output="o"):
        t("learn " + label, "learn", "--model", model, "--task", task, "--memory", memory, "--output", output, *FAST, *extra)
    inn = tmp_path / "in"; inn.mkdir()
    R = lambda label, s, *a: t("run " + label, "run", s, "--output", "o", *a)
    R("missing", "nope.yaml")
    for k, s in {"nomodel": dict(model=None), "probes": dict(probes=5), "limit": dict(limit=3), "probe": dict(probes=[{"data": "nowhere"}]), "badmodel": dict(model="/nowhere"), "unknown": dict(leaning_rate=3), "seed": dict(seed="x"), "eval bs": dict(per_device_eval_batch_size=0), "probe metric": dict(probes=[{"data": str(world.first), "metric": "foo", "name": "p"}]), "probe dup": dict(probes=[str(world.first)]), "maxlen": dict(max_length=4)}.items():
        R(k, write_stream(inn / "s.yaml", s.pop("model", world.base), [world.first, world.second], **s) )
    for o in ["learning_rate=1", "num_train_epochs=3", "seed=9", "method.lambda2=2", "max_length=20", "--method=derpp"]:
        t("resume " + o, "run", world.stream, "--output", world.run, "--resume", o)
    t("again", "run", world.stream, "--output", world.run)
    t("quick demo method", "demo", "--output", "o", "--methods", "foo")
