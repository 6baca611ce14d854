#!/usr/bin/env bash
# A Kubernetes cluster of one real node (kubelet, containerd, runc), for as long as one command runs. No Docker, no registry.
#
#   node.sh prepare                                          build and fetch the programs into the cache, once
#   node.sh run [--image ARCHIVE]... [--logs FOLDER] -- COMMAND [ARGUMENT]...
#   node.sh proof                                            show that it works, with times
#
# COMMAND gets KUBECONFIG (an administrator's) and NAGAYA_NODE=1; its exit code is this script's. All of it lives in
# namespaces of its own (mount, network, pid, cgroup, uts, ipc): pods and API server are reached from inside only, there is
# no way to the internet, and the machine's kernel settings, /run and /var/log stay as they are. Whatever happens, the
# processes end with the pid namespace.
#
# Needs root and cgroups; where those are not given it says why and exits with 77: skipped, not failed. The control plane's
# programs come from NAGAYA_CONTROL_PLANE=folder, else from the cache that `cargo xtask control-plane` fills.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/nagaya
readonly skipped=77

# Debian's and Ubuntu's; unpacked into the cache, not installed.
readonly packages=(containerd runc containernetworking-plugins)

say() { echo "node: $*" >&2; }
fail() { say "$*" && exit 1; }
skip() { say "not run: $*" && exit $skipped; }

# ---- Programs -------------------------------------------------------------------------------------------------------

kubernetes_version() { sed -n 's/^\tk8s.io\/kubernetes \(v[0-9.]*\).*/\1/p' "$here/go.mod"; }

# Where the programs are or will be; the name says what they are made from.
programs() {
  local digest
  digest=$({ cat "$here"/{go.mod,go.sum,*.go,*/*.go} && echo "${packages[@]}" && GOTOOLCHAIN=local go version; } \
    | sha256sum)
  echo "$cache/node/$(kubernetes_version)-${digest:0:12}"
}

prepare() {
  local folder
  folder=$(programs)
  mkdir -p "$cache/node"
  exec 8> "$cache/node/lock"
  flock 8 # Another run may be at it.
  if [[ ! -d $folder ]]; then
    rm -rf "$folder.building"
    mkdir "$folder.building"
    fetch_runtime "$folder.building"
    build "$folder.building"
    mv "$folder.building" "$folder"
  fi
  exec 8>&-
}

# containerd, its shim, ctr, runc and the CNI plugins.
fetch_runtime() {
  local folder=$1 package
  say "fetching ${packages[*]}"
  mkdir "$folder/debian"
  (cd "$folder/debian" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}") \
    || skip "apt-get download failed; does it need apt-get update first?"
  for package in "$folder"/debian/*.deb; do
    dpkg -x "$package" "$folder/debian"
  done
  mv "$folder"/debian/usr/bin/{containerd,containerd-shim-runc-v2,ctr} "$folder"/debian/usr/sbin/runc "$folder"
  mkdir "$folder/cni"
  mv "$folder"/debian/usr/lib/cni/{bridge,host-local,loopback} "$folder/cni"
  rm -r "$folder/debian"
}

build() {
  local folder=$1 version package name=k8s.io/component-base/version
  version=$(kubernetes_version)
  [[ $(sed -n 's/^\tk8s.io\/kubernetes //p' "$here/../control-plane/go.mod") == "$version" ]] \
    || fail "tests/node and tests/control-plane are of different Kubernetes versions"
  say "building kubelet and kube-scheduler $version; minutes, once"
  export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
  cd "$here"
  # The same flags as for the control plane: nearly all packages are compiled for it already.
  go build -trimpath -o "$folder/node" -ldflags "-s -w -X $name.gitVersion=$version \
    -X $name.gitMajor=1 -X $name.gitMinor=$(cut -d. -f2 <<< "$version")" .
  for package in archive pause proof; do
    go build -trimpath -ldflags "-s -w" -o "$folder/$package" "./$package"
  done
  ln -s node "$folder/kubelet"
  ln -s node "$folder/kube-scheduler"
  "$folder/archive" nagaya.test/pause:1 "$folder/pause.tar" "$folder/pause=/pause"
  "$folder/archive" nagaya.test/proof:1 "$folder/proof.tar" "$folder/proof=/proof"
}

find_control_plane() {
  if [[ -z ${NAGAYA_CONTROL_PLANE:-} ]]; then
    NAGAYA_CONTROL_PLANE=$(find "$cache/control-plane" -maxdepth 1 -name "$(kubernetes_version)-????????????" \
      -printf '%T@ %p\n' 2> /dev/null | sort -n | tail -n 1 | cut -d' ' -f2- || true)
  fi
  local program
  for program in etcd kube-apiserver kube-controller-manager; do
    [[ -x $NAGAYA_CONTROL_PLANE/$program ]] || fail "there is no $program; cargo xtask control-plane builds it"
  done
}

# ---- Outside of the namespaces --------------------------------------------------------------------------------------

readonly unshared=(unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child --mount-proc)

check_permissions() {
  local told tool made=no
  for tool in go apt-get ip kubectl curl openssl unshare setpriv flock; do
    command -v "$tool" > /dev/null || skip "there is no $tool"
  done
  ((EUID == 0)) || skip "a node needs root"
  told=$("${unshared[@]}" true 2>&1) || skip "namespaces are not permitted (${told##*unshare: })"
  told=$(make_cgroups "nagaya-node-$$" 2>&1) && made=yes
  remove_cgroups "nagaya-node-$$"
  [[ $made == yes ]] || skip "cgroups are not permitted ($told)"
}

# With version 2 there is one hierarchy, else one a controller or two; in a line each, the folder of our own cgroup.
# A version 2 beside version 1, which has no controllers, is left alone.
own_cgroups() {
  if [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; then
    echo /sys/fs/cgroup # Not our own: a cgroup with processes in it cannot hand on its controllers.
    return
  fi
  local controllers path folder
  while IFS=: read -r _ controllers path; do
    folder=/sys/fs/cgroup/${controllers#name=}${path%/}
    if [[ -n $controllers && -f $folder/cgroup.procs ]]; then
      echo "$folder"
    fi
  done < /proc/self/cgroup
}

make_cgroups() {
  local name=$1 parent file
  while read -r parent; do
    if [[ -f $parent/cgroup.subtree_control ]]; then
      sed 's/[a-z][a-z]*/+&/g' "$parent/cgroup.controllers" > "$parent/cgroup.subtree_control" || return
    fi
    mkdir -p "$parent/$name" || return
    # A new cpuset is empty, and takes no process before it is filled.
    for file in cpuset.cpus cpuset.mems; do
      if [[ $parent == */cpuset* ]]; then
        cat "$parent/$file" > "$parent/$name/$file" || return
      fi
    done
  done < <(own_cgroups)
}

enter_cgroups() {
  local name=$1 parent
  while read -r parent; do
    echo "$BASHPID" > "$parent/$name/cgroup.procs"
  done < <(own_cgroups)
}

# Those that a killed run left may be anywhere, so all are looked for.
remove_cgroups() {
  local name=$1 attempt
  for attempt in {1..50}; do
    find /sys/fs/cgroup -depth -type d -path "*/$name*" -regex ".*/$name\(/.*\)?" -exec rmdir {} + 2> /dev/null || true
    [[ -n $(find /sys/fs/cgroup -type d -name "$name" -print -quit) ]] || return 0
    sleep 0.1 # Processes just killed are still in there.
  done
  say "cannot remove the cgroups $name (attempt $attempt)"
}

# Every run holds a lock on its folder; what is not locked was left by one that was killed.
sweep() {
  local folder
  for folder in "${TMPDIR:-/tmp}"/nagaya-node-??????; do
    if [[ -f $folder/lock ]] && flock --nonblock "$folder/lock" true; then
      say "clearing away $folder"
      remove_cgroups "$(basename "$folder")"
      rm -rf --one-file-system "$folder"
    fi
  done
}

run() {
  check_permissions
  find_control_plane
  prepare
  sweep
  folder=$(mktemp -d "${TMPDIR:-/tmp}/nagaya-node-XXXXXX")
  exec 9> "$folder/lock"
  flock 9
  name=$(basename "$folder")
  trap clean EXIT
  make_cgroups "$name"
  enter "$@" &
  inside=$!
  trap 'kill -TERM $(cat "/proc/$inside/task/$inside/children")' INT TERM HUP
  local code=0
  wait "$inside" || code=$?
  # A signal ends the first wait; the second is for the end of what it was passed on to.
  while kill -0 "$inside" 2> /dev/null; do
    wait "$inside" || code=$?
  done
  exit "$code"
}

# Killed with its parent, and all in the pid namespace with it, so a killed run leaves folders but no process.
enter() {
  enter_cgroups "$name"
  export FOLDER=$folder BIN NAGAYA_CONTROL_PLANE
  BIN=$(programs)
  exec setpriv --pdeathsig KILL "${unshared[@]}" bash "$here/inside.sh" "$@" <&0 9>&-
}

clean() {
  if [[ -n ${logs:-} ]]; then
    mkdir -p "$logs"
    cp -rL "$folder"/*.log "$folder/logs" "$logs" 2> /dev/null || true
  fi
  remove_cgroups "$name"
  rm -rf --one-file-system "$folder"
}

images=()
logs=""
case ${1:-} in
  prepare)
    prepare
    programs
    ;;
  run)
    shift
    while [[ ${1:-} == --image || ${1:-} == --logs ]]; do
      case $1 in
        --image) images+=("$(realpath -e "$2")") ;;
        --logs) logs=$(realpath -m "$2") ;;
      esac
      shift 2
    done
    [[ ${1:-} == -- && $# -gt 1 ]] || fail "which command? node.sh run [--image ARCHIVE]... -- COMMAND"
    shift
    run "${#images[@]}" "${images[@]}" "$@"
    ;;
  proof)
    run 1 "$(programs)/proof.tar" "$here/proof/proof.sh"
    ;;
  *) fail "node.sh prepare, node.sh proof, or node.sh run [--image ARCHIVE]... [--logs FOLDER] -- COMMAND" ;;
esac
