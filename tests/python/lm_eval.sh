#!/usr/bin/env bash
# Run lm-eval's local-completions against a server.
#
# usage: [OPENAI_API_KEY=KEY] [LM_EVAL_VENV=DIR] lm_eval.sh BASE_URL [MODEL.gguf]
#
# With MODEL.gguf the tokenizer comes from the file; without it, from the server's /tokenizer_info and /tokenize endpoints.
# Ends with 0 when both tasks reach their floor.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: lm_eval.sh BASE_URL [MODEL.gguf]" >&2
    exit 2
fi
base_url=${1%/}
gguf=${2:+$(realpath "$2")}
here=$(cd "$(dirname "$0")" && pwd)
venv=${LM_EVAL_VENV:-$here/../../target/lm-eval}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$venv/bin/lm_eval" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$here/lm_eval_requirements.txt"
fi

key=${OPENAI_API_KEY:-none}
export OPENAI_API_KEY=$key
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$work/hf TOKENIZERS_PARALLELISM=false
model=$(
    "$venv/bin/python" -c '
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1] + "/v1/models", headers={"Authorization": "Bearer " + sys.argv[2]})
print(json.load(urllib.request.urlopen(request))["data"][0]["id"])' "$base_url" "$key"
)
if [ -n "$gguf" ]; then
    "$venv/bin/python" "$here/hf_tokenizer.py" "$gguf" "$work/tokenizer"
    tokenizer="tokenizer_backend=huggingface,tokenizer=$work/tokenizer"
else
    tokenizer="tokenizer_backend=remote,auth_token=$key"
fi

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
