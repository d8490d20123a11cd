#!/usr/bin/env bash
# Run lm-eval's local-completions against a server.
#
# usage: [OPENAI_API_KEY=KEY] [LM_EVAL_VENV=DIR] lm_eval.sh BASE_URL MODEL.gguf
#
# BASE_URL is the server's, without /v1; MODEL.gguf is the file that it serves, which the tokenizer is read from.
# Ends with 0 when both tasks reach their floor.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: lm_eval.sh BASE_URL MODEL.gguf" >&2
    exit 2
fi
base_url=${1%/}
[ -f "$2" ] || { echo "error: there is no file $2" >&2; exit 2; }
gguf=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
venv=${LM_EVAL_VENV:-$here/../../target/lm-eval}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$venv/bin/lm_eval" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$here/lm_eval_requirements.txt"
fi

export OPENAI_API_KEY=${OPENAI_API_KEY:-none}
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$work/hf TOKENIZERS_PARALLELISM=false
model=$("$venv/bin/python" - "$base_url/v1/models" <<'MODEL'
import json, os, sys, urllib.request

request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
try:
    print(json.load(urllib.request.urlopen(request))["data"][0]["id"])
except (OSError, ValueError) as error:
    sys.exit(f"error: failed to ask {sys.argv[1]} for its model: {error}")
MODEL
)
"$venv/bin/python" "$here/hf_tokenizer.py" "$gguf" "$work/tokenizer"
tokenizer="tokenizer_backend=huggingface,tokenizer=$work/tokenizer"

cd "$here/lm_eval_tasks"
"$venv/bin/lm_eval" run --model local-completions \
    --model_args "model=$model,base_url=$base_url/v1/completions,$tokenizer,num_concurrent=${LM_EVAL_CONCURRENT:-2},max_retries=1" \
    --include_path . --tasks brigade_choice,brigade_generate --batch_size "${LM_EVAL_BATCH:-1}" \
    --output_path "$work/results" --log_samples

"$venv/bin/python" - "$work/results" <<'CHECK'
import json, pathlib, sys

FLOORS = {"brigade_choice": ("acc,none", 0.75), "brigade_generate": ("exact_match,first-word", 0.5)}
[path] = pathlib.Path(sys.argv[1]).rglob("results_*.json")
results = json.loads(path.read_text())["results"]
failed = False
for task, (metric, floor) in FLOORS.items():
    value = results[task][metric]
    print(f"{'ok' if value >= floor else 'FAILED'} {task} {metric} = {value} (floor {floor})")
    failed |= value < floor
sys.exit(failed)
CHECK
