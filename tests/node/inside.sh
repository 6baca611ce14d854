#!/usr/bin/env bash
# The part of node.sh that runs inside the namespaces, as their first process: starts the cluster, runs the command, stops
# the cluster. Arguments: the number of image archives, the archives, the command.
#
# From node.sh: FOLDER, the instance's folder; BIN, the node's programs; NAGAYA_CONTROL_PLANE, those of the control plane.
# What is only mounted here, or only runs here, needs no cleaning: it goes with the namespaces.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly node=nagaya-node
readonly bridge=10.88.0.1 # the node's address, and the pods' way out
readonly service=10.0.0.1 # the Service `kubernetes`: an address of the API server itself, so nothing need be redirected
readonly ctr=("$BIN/ctr" --address /run/containerd/containerd.sock --namespace k8s.io)

say() { echo "node: $*" >&2; }
seconds() { awk "BEGIN { printf \"%.1f s\", $EPOCHREALTIME - $1 }"; }

# ---- The private view of the machine ----------------------------------------------------------------------------------

mount_privately() {
  # Sockets, state and logs of the same programs on this machine are none of ours, and theirs not for us.
  mount -t tmpfs -o mode=755 tmpfs /run
  mount -t tmpfs -o mode=755 tmpfs /var/log
  mkdir -p /run/lib/{upper,work}
  mount -t overlay -o lowerdir=/var/lib,upperdir=/run/lib/upper,workdir=/run/lib/work overlay /var/lib
  # A new one shows this network namespace's devices.
  mount -t sysfs sysfs /sys
  mount_cgroups
  pretend vm/overcommit_memory 1
  pretend vm/panic_on_oom 0
  pretend kernel/panic 10
  pretend kernel/panic_on_oops 1
  pretend kernel/keys/root_maxkeys 1000000
  pretend kernel/keys/root_maxbytes 25000000
}

# What is below our own cgroup looks like all there is.
mount_cgroups() {
  if [[ $(cat /proc/self/cgroup) == 0::* ]]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # A cgroup with processes in it cannot hand on its controllers.
    mkdir /sys/fs/cgroup/init
    echo $$ > /sys/fs/cgroup/init/cgroup.procs
    sed 's/[a-z][a-z]*/+&/g' /sys/fs/cgroup/cgroup.controllers > /sys/fs/cgroup/cgroup.subtree_control
    return
  fi
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  local id controllers
  while IFS=: read -r id controllers _; do
    [[ $id == 0 ]] && continue
    mkdir "/sys/fs/cgroup/${controllers#name=}"
    [[ $controllers == name=* ]] && controllers=none,$controllers
    mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/${controllers#none,name=}"
  done < /proc/self/cgroup
}

# Shows the kubelet a kernel setting that it insists on; the machine's own stays.
pretend() {
  local file=$FOLDER/sysctl/$1
  mkdir -p "$(dirname "$file")"
  echo "$2" > "$file"
  mount --bind "$file" "/proc/sys/$1"
}

make_network() {
  hostname "$node"
  ip link set lo up
  # With an address of its own; otherwise it takes the lowest of its ports', a new one with every pod.
  ip link add cni0 address 02:00:0a:58:00:01 type bridge
  ip address add "$bridge/24" dev cni0
  ip address add "$service/32" dev cni0
  ip link set cni0 up
}

# ---- Credentials ------------------------------------------------------------------------------------------------------

readonly plain='[req]
distinguished_name = dn
[dn]'
readonly new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2)

authority() {
  openssl req -x509 "${new_key[@]}" -config <(echo "$plain") -subj "/CN=nagaya-node-$1" -keyout "$1.key" -out "$1.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2> /dev/null
}

# issue NAME AUTHORITY SUBJECT USAGE [EXTENSION]
issue() {
  openssl req -x509 "${new_key[@]}" -config <(echo "$plain") -subj "$3" -keyout "$1.key" -out "$1.crt" \
    -CA "$2.crt" -CAkey "$2.key" -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature \
    -addext "extendedKeyUsage=$4" ${5:+-addext "$5"} 2> /dev/null
}

# user FILE NAME GROUP
user() {
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$2,\"$3\"" >> tokens.csv
  cat > "$1.kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{ name: node, cluster: { server: "https://$service", certificate-authority-data: $(base64 -w0 ca.crt) } }]
users: [{ name: user, user: { token: $token } }]
contexts: [{ name: node, context: { cluster: node, user: user } }]
current-context: node
END
}

make_credentials() {
  local names=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$service,IP:$bridge
  authority ca
  issue apiserver ca /CN=kube-apiserver serverAuth "subjectAltName=$names"
  issue kubelet-client ca /O=system:masters/CN=kube-apiserver clientAuth
  authority front-proxy-ca
  issue front-proxy front-proxy-ca /CN=front-proxy-client clientAuth
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out sa.key 2> /dev/null
  openssl pkey -in sa.key -pubout -out sa.pub
  user admin admin system:masters
  user manager system:kube-controller-manager ""
  user scheduler system:kube-scheduler ""
  user kubelet "system:node:$node" system:nodes
}

# ---- Starting ---------------------------------------------------------------------------------------------------------

declare -A pids=()

# Away from the terminal's Ctrl-C, because they must end one after the other.
start() {
  local name
  name=$(basename "$1")
  setsid "$@" > "$name.log" 2>&1 < /dev/null &
  pids[$name]=$!
}

# await SECONDS COMMAND...: until it succeeds, while all that was started lives.
await() {
  local deadline=$((SECONDS + $1)) name
  shift
  until "$@" > /dev/null 2>&1; do
    for name in "${!pids[@]}"; do
      kill -0 "${pids[$name]}" 2> /dev/null || give_up "$name has ended"
    done
    ((SECONDS < deadline)) || give_up "waited too long for: $*"
    sleep 0.05
  done
}

give_up() {
  say "$*"
  tail -n 15 ./*.log >&2
  exit 1
}

start_control_plane() {
  start "$NAGAYA_CONTROL_PLANE/etcd" --name=t --log-level=warn --data-dir=etcd --unsafe-no-fsync \
    --initial-cluster=t=unix://peer:1 --listen-client-urls=unix://etcd:1 --advertise-client-urls=unix://etcd:1 \
    --listen-peer-urls=unix://peer:1 --initial-advertise-peer-urls=unix://peer:1
  # As in tests/src/control_plane/flags.rs, except for the address, the node's authority, its kubelet and the audit log.
  # With aggregator routing an APIService is reached at its pods; nothing here gives Services an address.
  GOMEMLIMIT=350MiB start "$NAGAYA_CONTROL_PLANE/kube-apiserver" \
    --etcd-servers=unix://etcd:1 \
    --bind-address=0.0.0.0 --advertise-address="$bridge" --secure-port=443 \
    --external-hostname="$service" --service-cluster-ip-range=10.0.0.0/24 \
    --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key --client-ca-file=ca.crt \
    --token-auth-file=tokens.csv --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key \
    --requestheader-client-ca-file=front-proxy-ca.crt --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file=front-proxy.crt --proxy-client-key-file=front-proxy.key \
    --kubelet-client-certificate=kubelet-client.crt --kubelet-client-key=kubelet-client.key \
    --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true \
    --shutdown-watch-termination-grace-period=1s --allow-privileged=true --profiling=false
}

start_controllers() {
  # A claim made together with its volume would wait for the next of its looks, 15 s apart.
  start "$NAGAYA_CONTROL_PLANE/kube-controller-manager" --pvclaimbinder-sync-period=1s \
    --kubeconfig=manager.kubeconfig --authentication-kubeconfig=manager.kubeconfig \
    --authorization-kubeconfig=manager.kubeconfig \
    --service-account-private-key-file=sa.key --root-ca-file=ca.crt --use-service-account-credentials=true \
    --leader-elect=false --secure-port=0 --bind-address=127.0.0.1 --profiling=false
  start "$BIN/kube-scheduler" \
    --kubeconfig=scheduler.kubeconfig --authentication-kubeconfig=scheduler.kubeconfig \
    --authorization-kubeconfig=scheduler.kubeconfig --leader-elect=false --secure-port=0 --profiling=false
}

start_runtime() {
  local file
  mkdir cni logs
  for file in containerd.toml kubelet.yaml bridge.conflist; do
    sed "s|@FOLDER@|$FOLDER|g; s|@BIN@|$BIN|g" "$here/config/$file" > "$file"
  done
  mv bridge.conflist cni
  start "$BIN/containerd" --config containerd.toml
}

import_images() {
  local archive
  for archive in "$BIN/pause.tar" "$@"; do
    "${ctr[@]}" images import "$archive" > import.log 2>&1 || give_up "containerd does not take $archive"
  done
}

start_kubelet() {
  start "$BIN/kubelet" --config=kubelet.yaml --kubeconfig=kubelet.kubeconfig --root-dir="$FOLDER/kubelet" \
    --cert-dir="$FOLDER/kubelet/pki" --hostname-override="$node" --node-ip="$bridge"
}

server_is_ready() { curl --silent --fail --cacert ca.crt "https://$service/readyz"; }
node_is_ready() { kubectl wait node "$node" --for=condition=Ready --timeout=1s; }
account_is_there() { kubectl get serviceaccount default; }

start_cluster() {
  local began=$EPOCHREALTIME
  start_control_plane
  start_runtime
  await 30 "${ctr[@]}" version
  import_images "$@"
  say "containerd is up, $(($# + 1)) images imported: $(seconds "$began")"
  await 60 server_is_ready
  say "API server ready: $(seconds "$began")"
  start_controllers
  start_kubelet
  await 60 node_is_ready
  say "node ready: $(seconds "$began")"
  await 60 account_is_there
  say "default ServiceAccount there: $(seconds "$began")"
}

# ---- Stopping ---------------------------------------------------------------------------------------------------------

# Asks, waits ten seconds, insists.
stop() {
  local pid=${pids[$1]:-} turn
  [[ -n $pid ]] || return 0
  kill -TERM "$pid" 2> /dev/null || true
  for turn in {1..200}; do
    kill -0 "$pid" 2> /dev/null || return 0
    sleep 0.05
  done
  say "$1 did not end when asked ($turn looks), killing it"
  kill -KILL "$pid" 2> /dev/null || true
}

tasks() { "${ctr[@]}" tasks list 2> /dev/null | sed -n "s/ .*RUNNING.*//p"; }
no_tasks() { [[ -z $(tasks) ]]; }

stop_pods() {
  local task turn
  for task in $(tasks); do
    "${ctr[@]}" tasks kill --signal KILL --all "$task" 2> /dev/null || true
  done
  for turn in {1..100}; do
    no_tasks && return 0
    sleep 0.05
  done
  say "some containers did not end ($turn looks); they end with the namespace"
}

stop_cluster() {
  local began=$EPOCHREALTIME
  trap '' TERM
  [[ -z ${command:-} ]] || kill -TERM "$command" 2> /dev/null || true
  stop kubelet
  stop_pods
  stop containerd
  stop kube-scheduler
  stop kube-controller-manager
  stop kube-apiserver
  stop etcd # A server without its etcd does not end for minutes.
  say "stopped: $(seconds "$began")"
}

main() {
  local count=$1
  shift
  local images=("${@:1:count}")
  shift "$count"
  local where=$PWD
  export PATH=$BIN:$PATH NAGAYA_NODE=1
  export KUBECONFIG=$FOLDER/admin.kubeconfig KUBECACHEDIR=$FOLDER/kubectl
  cd "$FOLDER"
  mount_privately
  make_network
  make_credentials
  trap stop_cluster EXIT
  trap 'exit 143' TERM
  start_cluster "${images[@]}"
  cd "$where"
  "$@" <&0 &
  command=$!
  local code=0
  wait "$command" || code=$?
  command=
  exit "$code"
}

main "$@"
