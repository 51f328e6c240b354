#!/usr/bin/env bash
# Put the committed tree and its requirements on every worker of all slices:
#   tpu_scripts/setup.sh --name=polylm [--slices=N] [--tokenizer=FILE.model] [--commit=HEAD]
#     [--zone=Z] [--project=P]
# A tokenizer, which is not committed, comes to lie in ~/polylm_jax under the name given here.
# Run it again after a commit: the code is replaced, installed packages are kept.
set -euo pipefail
knows="--name= --slices= --tokenizer= --commit= --zone= --project="
# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "$0")/common.sh"

root=$(cd "$(dirname "$0")/.." && pwd)
git -C "$root" diff --quiet "$commit" || say "note: changes since commit $commit are not copied."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/polylm_jax.tar.gz
more=()
if [[ -n $tokenizer ]]; then
  [[ $tokenizer != /* && -f $root/$tokenizer ]] ||
    stop "there is no $tokenizer in $root; give --tokenizer=FILE.model as seen from there."
  more=(--prefix="$(dirname "$tokenizer")/" --add-file="$tokenizer" --prefix=)
fi
run git -C "$root" archive --format=tar.gz --output="$archive" ${more[@]+"${more[@]}"} "$commit"
for node in "${nodes[@]}"; do
  tpus tpu-vm scp "$archive" "$node:" --worker=all
done

# The Ubuntu 22.04 of the machine images has Python 3.10, which is too old: uv fetches 3.11.
# A module that the new tree no longer has must not linger, so the package is unpacked afresh.
on_all_workers 'set -e
mkdir -p polylm_jax
rm -rf polylm_jax/polylm_jax polylm_jax/gin_configs
tar -xzf polylm_jax.tar.gz -C polylm_jax
cd polylm_jax
if [ ! -x .venv/bin/pip ]; then
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --seed --python 3.11 .venv
fi
.venv/bin/pip install --quiet -r requirements.txt "jax[tpu]" gcsfs
.venv/bin/pip install --quiet --no-deps --editable .'
[[ $dry_run == true ]] || echo "next: tpu_scripts/launch.sh $these --gin_file=FILE"
