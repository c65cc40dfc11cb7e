from hf_dbmtl_cli import main
from pathlib import Path
def test_smoke(encoder, files, capsys):
    Path("run.yaml").write_text("""
model_name_or_path: encoder
output_dir: out
max_steps: 4
use_cpu: true
learning_rate: 1e-3
tasks:
  feeling: {kind: classification, dataset: {path: sst.csv, eval_fraction: 0.25}, text: sentence, label: feeling}
  same: {kind: classification, dataset: {path: pairs.parquet, eval_fraction: 0.25}, text: [first, second], label: same}
  score: {kind: regression, dataset: {data_files: scores.jsonl, split: {train: "train[:30]", eval: "train[30:]"}}, label: score}
  place: {kind: token_classification, dataset: {path: words.jsonl, eval_fraction: 0.25}, text: tokens, label: tags}
""")
    main(["train", "run.yaml"])
    print(capsys.readouterr().out)
    import os; print(os.listdir("out")); print(Path("out/README.md").read_text())
    assert 0
