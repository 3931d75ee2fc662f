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
    for o in ["replay=5", "replay=[1]", "method=5", "method=[a]", "learning_rate=abc", "learning_rate=-1", "num_train_epochs=-1", "num_train_epochs=0", "num_train_epochs=abc",
              "per_device_train_batch_size=0", "per_device_train_batch_size=-3", "max_length=0", "max_length=-5", "max_length=9999", "seed=-1", "seed=abc", "seed=1.5", "general=nowhere.json", "logging_steps=0", "logging_steps=-1",
              "measure_every=-1", "lr_scheduler_type=foo", "optim=foo", "fp16=true", "bf16=true", "replay.every=0", "replay.every=-1", "replay.share=2", "replay.share=0", "replay.ratio=-1", "replay.ratio=1.5","replay.ratio=abc", "replay.samples=-1", "replay.batch_size=0", "method.lambda2=abc", "method.lambda2=-1", "method.lambda1=3", "method.head_budget=-1", "method.head_budget=1.5", "method.head_budget=abc",
              "method.head_budget=true", "method.head_budget=0", "method.layer_budget=0", "method.query_budget=0", "method.head_budget=1000", "method.layer_budget=1000", "method.query_budget=1000", "replay.ratio=0", "replay.samples=0", "preset=ofical", "preset=5", "method.heads=foo", "dtype=float31", "dtype=float16", "general_samples=-1", "general_samples=0", "gradient_accumulation_steps=0", "gradient_accumulation_steps=-1", "warmup_steps=-1", "weight_decay=abc", "max_grad_norm=-1", "report_to=wandb", "save_strategy=no", "batch_size=3", "method.head_buget=3", "replay.ration=3", "=3", "a.b.c=3", "x", "progress=5", "pad_multiple=0", "pad_multiple=-1", "method.logits_top_k=0", "method.logits_top_k=-1", "method.logits_top_k=1000", "use_cpu=maybe", "boundary=foo", "deepspeed=foo.json", "fsdp=foo", "accelerator_config=foo", "neftune_noise_alpha=abc", "torch_compile=abc", "adam_beta1=5", "hub_token=abc", "run_name=5","learning_rate=[1", "max_prompt_length=0", "max_answer_length=1", "keep_models=none", "signal_dtype=int8", "gradient_checkpointing=true", "method.attention_share=1", "num_train_epochs=1e-9", "auto_find_batch_size=true","use_cpu=false"]:
        L(o, o)
    L("same folder", memory="o")
    L("output in memory", memory="m", output="m/x")
    L("memory is file", memory=world.stream)
    L("output is file", output=world.stream)
    L("output under file", output=str(world.stream)+"/o")
    L("memory under file", memory=str(world.stream)+"/o")
    L("method foo", "--method", "sekr")
    L("config missing", "--config", "nope.yaml")
    L("name slash", "--name", "../../x")
    L("name empty", "--name", "")
    L("model file", model=world.stream)
    L("model hub", model="nobody/nothing-here")
    L("multitask one", "--method", "multitask")
    L("seqft", "--method", "seqft")
    L("relearn same name", memory=world.memory, model=world.learnt)
    E = lambda label, *a: t("evaluate " + label, "evaluate", "--model", world.base, "--output", "o", *a)
    E("bs0", "--task", world.first, "--batch-size", "0")
    E("bs-1", "--task", world.first, "--batch-size", "-1")
    E("mnt0", "--task", world.first, "--max-new-tokens", "0")
    E("mnt1000", "--task", world.first, "--max-new-tokens", "1000")
    E("ml0", "--task", world.first, "--max-length", "0")
    E("ml9999", "--task", world.first, "--max-length", "9999", "--max-new-tokens", "4")
    E("metric", "--task", world.first, "--metric", "rouge", "--max-new-tokens", "4")
    E("dup", "--task", world.first, world.first, "--max-new-tokens", "4")
    E("fine", "--task", world.first, world.first/"train.json", "--max-new-tokens", "4")
    E("missing", "--task", "nowhere", "--max-new-tokens", "4")
    E("nofile", "--max-new-tokens", "4")
    E("bad int", "--task", world.first, "--max-new-tokens", "x")
    t("badopt", "learn", "--foo")
    t("badcmd", "lern")
    t("none")
    t("memory show missing", "memory", "show", "nope")
    t("memory show model", "memory", "show", world.base)
    R = lambda label, s, *a: t("run " + label, "run", s, "--output", "o", *a)
    R("missing", "nope.yaml")
    for k, s in {"nomodel": dict(model=None), "probes": dict(probes=5), "limit": dict(limit=3), "probe": dict(probes=[{"data": "nowhere"}]), "badmodel": dict(model="/nowhere"), "unknown": dict(leaning_rate=3), "seed": dict(seed="x"), "eval bs": dict(per_device_eval_batch_size=0), "probe metric": dict(probes=[{"data": str(world.first), "metric": "foo", "name": "p"}]), "probe dup": dict(probes=[str(world.first)]), "maxlen": dict(max_length=4)}.items():
        R(k, write_stream(inn / "s.yaml", world.base, [world.first, world.second], **s) )
    for o in ["learning_rate=1", "num_train_epochs=3", "seed=9", "method.lambda2=2", "max_length=20", "--method=derpp"]:
        t("resume " + o, "run", world.stream, "--output", world.run, "--resume", o)
    t("again", "run", world.stream, "--output", world.run)
    t("quick demo method", "demo", "--output", "o", "--methods", "foo")
