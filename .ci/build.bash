# shellcheck shell=bash
# What examples/run, tests/run and .ci/run share; to be sourced. Everything goes to standard error, which leaves
# standard output to the programs that are run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CXX=${CXX:-g++}

say() { printf 'terrace: %s\n' "$*" >&2; }

# Runs a command as root where that needs no password.
as_root() {
  if ((EUID == 0)); then
    "$@"
  else
    sudo -n "$@"
  fi
}

# Prints the Debian packages that are missing, a line each. The headers decide, and not the package manager: they may
# have come in another way.
missing_packages() {
  local with_tests=$1
  command -v cmake >/dev/null || echo cmake
  command -v ninja >/dev/null || echo ninja-build
  command -v ccache >/dev/null || echo ccache
  if ! command -v "$CXX" >/dev/null; then
    echo g++
    # Without a compiler there is no telling which headers there are; apt knows.
    printf '%s\n' liburing-dev libzstd-dev liblz4-dev libcli11-dev nlohmann-json3-dev
    if ((with_tests)); then printf '%s\n' catch2 libbenchmark-dev; fi
  else
    "$CXX" -x c++ -E -P - <<EOF | grep . || true
#if !__has_include(<liburing.h>)
liburing-dev
#endif
#if !__has_include(<zstd.h>)
libzstd-dev
#endif
#if !__has_include(<lz4.h>)
liblz4-dev
#endif
#if !__has_include(<CLI/CLI.hpp>)
libcli11-dev
#endif
#if !__has_include(<nlohmann/json.hpp>)
nlohmann-json3-dev
#endif
#if $with_tests && !__has_include(<catch2/catch.hpp>) && !__has_include(<catch2/catch_all.hpp>)
catch2
#endif
#if $with_tests && !__has_include(<benchmark/benchmark.h>)
libbenchmark-dev
#endif
EOF
  fi
  if ((with_tests)); then
    [[ -n $(find_clang) ]] || echo clang-19
    command -v clang-format >/dev/null || echo clang-format
  fi
  if ((with_tests > 1)); then
    local clang=$(find_clang || true)
    if [[ -n $clang ]] && ! has_sanitizers "$clang"; then
      echo "libclang-rt-$("$clang" -dumpversion | cut -d . -f 1)-dev"
    fi
  fi
}

# Whether a compiler can link a program with its sanitizers: clang's are a package of their own.
has_sanitizers() {
  "$1" -x c++ -fsanitize=address,undefined -o /dev/null - <<<'int main() {}' 2>/dev/null
}

# Prints the newest clang++ that Terrace supports, or nothing.
find_clang() {
  local version
  for version in {30..16}; do
    if command -v "clang++-$version"; then return; fi
  done
  if command -v clang++ >/dev/null && (($(clang++ -dumpversion | cut -d . -f 1) >= 16)); then
    command -v clang++
  fi
}

# Whether one can do without a package: make stands in for ninja, and tests that miss a tool are skipped by name.
is_optional() {
  case $1 in
    ninja-build) command -v make >/dev/null ;;
    ccache | clang-19 | clang-format | libbenchmark-dev | libclang-rt-*) true ;;
    *) false ;;
  esac
}

# Runs apt-get, which is shown only if it fails.
apt() {
  local output
  if ! output=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null 2>&1); then
    printf '%s\n' "$output" >&2
    return 1
  fi
}

# Installs what is missing, where that is possible; otherwise names it, and exits with 1 unless it is optional.
# What is optional and was not to be had is not asked for again. ensure_packages 0 is for the examples,
# ensure_packages 1 for the tests as well, and ensure_packages 2 for those under sanitizers.
ensure_packages() {
  local package unavailable=$root/build/.unavailable_packages
  local -a missing needed=() optional=()
  mapfile -t missing < <(missing_packages "$1")
  for package in "${missing[@]}"; do
    if ! is_optional "$package"; then
      needed+=("$package")
    elif ! grep -qsxF "$package" "$unavailable"; then
      optional+=("$package")
    fi
  done
  if ((${#needed[@]} + ${#optional[@]} == 0)); then return; fi

  if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
    say "installing ${needed[*]} ${optional[*]}"
    apt update || true
    if ((${#needed[@]} == 0)) || apt install --no-install-recommends "${needed[@]}"; then needed=(); fi
    # One at a time: a distribution that lacks one of them may have the others.
    for package in "${optional[@]}"; do
      if apt install --no-install-recommends "$package"; then continue; fi
      if [[ $package == clang-19 ]] && apt install --no-install-recommends clang; then continue; fi
      say "going on without $package"
      mkdir -p "$root/build"
      echo "$package" >>"$unavailable"
    done
  fi
  if ((${#needed[@]} > 0)); then
    say "please install ${needed[*]}"
    exit 1
  fi
}

# The environment of the compilations: ninja where there is one, and a cache that can be written.
prepare_environment() {
  if command -v ninja >/dev/null; then export CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}; fi
  if command -v ccache >/dev/null; then
    local cache
    cache=$(ccache --get-config cache_dir 2>/dev/null || true)
    if [[ -z $cache ]] || ! mkdir -p "$cache" 2>/dev/null || [[ ! -w $cache ]]; then
      export CCACHE_DIR=$root/build/.ccache
    fi
    # Another clone of the same sources finds the same objects.
    export CCACHE_BASEDIR=$root
  fi
}

# Drops what a build says when there is nothing to do.
only_news() {
  grep --line-buffered -vE '^(ninja: no work to do|\[.*\] (Re-checking globbed|Built target )|Consolidate compiler)' || true
}

# Configures a preset and builds targets in its folder: build_preset PRESET FOLDER [CMAKE_FLAG...] -- [TARGET...]
# One at a time in each folder, so that programs may be started side by side.
build_preset() {
  local preset=$1 folder=$root/$2
  local -a flags=() targets=()
  shift 2
  while [[ $1 != -- ]]; do
    flags+=("$1")
    shift
  done
  shift
  if (($# > 0)); then targets=(--target "$@"); fi

  mkdir -p "$folder"
  (
    if command -v flock >/dev/null; then flock 9; fi
    configure "$preset" "$folder" "${flags[@]}" 9>&- || exit 1
    # One run shows all that does not compile.
    local -a keep_going=(-k)
    if [[ -f $folder/build.ninja ]]; then keep_going=(-k 0); fi
    cmake --build "$folder" --parallel "$(nproc)" "${targets[@]}" -- "${keep_going[@]}" 2>&1 9>&- | only_news >&2
  ) 9>"$folder/.lock"
}

# Shows what the first configuration leaves out, and everything if it fails.
configure() {
  local preset=$1 folder=$2 cache=$2/CMakeCache.txt output
  shift 2
  local first=1
  if [[ -f $cache ]]; then
    first=0
    # A folder that came here from another place is configured from nothing.
    grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$cache" || set -- --fresh "$@"
  fi
  if ! output=$(cd "$root" && cmake --preset "$preset" "$@" 2>&1); then
    printf '%s\n' "$output" >&2
    return 1
  fi
  if ((first)); then grep '^terrace: ' <<<"$output" >&2 || true; fi
}
