# shellcheck shell=bash
# Sourced by what starts a run: all that can be refused is refused here, before money flows. Gin
# files and local paths are as seen from the root of the repository, as the workers see them.

# shellcheck disable=SC2154 # here: the folder of the scripts
root=$(cd "$here/.." && pwd)
settings="" # all that are in force, as gin

# polylm_in FOLDER VERB …: `polylm` with the run's arguments, on a CPU whatever is here
polylm_in() { (cd "$1" && JAX_PLATFORMS=cpu "$polylm" "${@:2}" "${arguments[@]}"); }

# check_settings: the gin files are there and all settings are valid
check_settings() {
  local argument
  polylm=$root/.venv/bin/polylm
  [[ -x $polylm ]] || polylm=$(command -v polylm) ||
    stop "needs polylm here, to check the run before it costs money; \`make .venv/ready\` in" \
      "$root installs it, --unchecked goes on without."
  for argument in "${arguments[@]}"; do
    case $argument in
      --gin_file=/* | --gin_file=../* | --gin_file=*/../*)
        stop "${argument#*=} is not where the workers look; give a file of the repository, as" \
          "seen from $root."
        ;;
    esac
  done
  settings=$(polylm_in "$root" config) || stop "nothing was started; mend what polylm says above."
}

# check_commit: what is committed, which is all that the workers get, gives the same settings
check_commit() {
  local folder problem=""
  folder=$(mktemp -d)
  if ! git -C "$root" archive HEAD -- '*.gin' | tar -xf - -C "$folder"; then
    problem="git says above what is amiss with that"
  elif ! polylm_in "$folder" config >"$folder/settings" 2>"$folder/why"; then
    problem="polylm says of that: $(tail -n 1 "$folder/why")"
  elif [[ $(<"$folder/settings") != "$settings" ]]; then
    problem="its settings are not those of the files here"
  fi
  rm -rf "$folder"
  [[ -z $problem ]] || stop "the workers get what is committed in $root, and $problem" \
    "(not committed: $(uncommitted)); git add and commit the run's gin files."
}

# the gin files, of those that are given or that git knows, that are not as they are committed
uncommitted() {
  local argument files=()
  for argument in "${arguments[@]}"; do
    [[ $argument != --gin_file=* ]] || files+=("${argument#*=}")
  done
  {
    git -C "$root" diff --name-only HEAD -- '*.gin'
    git -C "$root" ls-files --others -- "${files[@]}"
    git -C "$root" ls-files --others --exclude-standard -- '*.gin'
  } | sort -u | paste -s -d ' ' -
}

# check_slice NAME, as `polylm plan` has it: the run can be split over the slice's chips, and is
# not known to be too large for them
check_slice() {
  polylm_in "$root" plan --known --slice="$1" >&2 ||
    stop "nothing was started; mend what polylm says above."
}

# setting NAME: its value, without quotes
setting() { sed -n -e "s/^$1 = //p" <<<"$settings" | sed -e "s/^['\"]//" -e "s/['\"]\$//"; }

is_remote() { [[ $1 == ?*://* && $1 != file://* && $1 != local://* ]]; }

# check_places WHAT: the run's folder and rows are where every slice finds them again, or `stop` or
# `say` so
check_places() {
  local place
  for place in train.folder rows.path; do
    is_remote "$(setting "$place")" ||
      "$1" "$place = '$(setting "$place")' is on a disk that goes with the slice; give a place" \
        "that every slice finds, as --gin.$place=gs://BUCKET/FOLDER."
  done
}

# check_tokenizer: the workers get it, as --tokenizer, with the commit, or from a place of its own
check_tokenizer() {
  local place
  place=$(setting tokenizer.path)
  place=${place%/}
  [[ $tokenizer == "$place" || $tokenizer == "$place"/* ]] || is_remote "$place" ||
    git -C "$root" cat-file -e "HEAD:$place" 2>/dev/null ||
    stop "tokenizer.path = '$place' is not on the workers; have it copied with" \
      "--tokenizer=$place (its .model file)."
}
