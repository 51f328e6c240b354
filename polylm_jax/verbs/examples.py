"""What `--help` of a verb shows as an example: it works once the verbs before it have run."""

EXAMPLES = {
    "corpus": "--small --gin_file=runs/demo.gin",
    "tokenizer": "--gin_file=runs/demo.gin",
    "rows": "--gin_file=runs/demo.gin",
    "curriculum": "--gin_file=runs/demo.gin",
    "plan": "--gin_file=runs/polylm_1b7_v5p_128.gin",
    "train": "--gin_file=runs/demo.gin",
    "tune": "--gin_file=runs/demo_tune.gin",
    "status": "--run=runs/demo",
    "runs": "runs",
    "sweep": "--gin_file=runs/demo.gin --over='optimizer.clip=0.5,1.0' --over='train.seed=1,2'",
    "compare": "--run='runs/demo_sweep/*'",
    "report": "--run=runs/demo",
    "generate": "--run=runs/demo --prompt='Bitte geben Sie'",
    "chat": "--run=runs/demo_tune",
    "serve": "--run=runs/demo_tune --port=8000",
    "evaluate": "--run=runs/demo --gin_file=evaluation/small.gin",
    "score": "--run=runs/demo --pairs=pairs.jsonl --out=scores.jsonl",
    "overlap": "--run=runs/demo --gin_file=evaluation/small.gin",
    "lm-eval": "--run=runs/demo -- --tasks xcopa_it",
    "self-instruct": "seeds --gin_file=tune/self_instruct.gin",
    "import": "--from=openai-community/gpt2 --run=runs/gpt2",
    "export": "--run=runs/demo --to=demo_hugging_face",
    "bench": "train --gin_file=runs/bench_cpu.gin",
    "config": "--gin_file=runs/demo.gin --gin.train.steps=100",
}
FIRST = ("corpus", "tokenizer", "rows", "train", "report")  # what a new user does
