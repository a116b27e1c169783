#!/usr/bin/env bash
# A real S3 server for tests: one Ceph object gateway on 127.0.0.1, without systemd or authentication between its parts.
#   s3_server.sh start DIR   installs it if it may (Debian or Ubuntu, root or sudo), starts it, writes DIR/env.sh
#   s3_server.sh stop DIR
# Exit status 3: it is not installed and cannot be.
set -euo pipefail
export LC_ALL=C
verb=${1:?start or stop}; dir=${2:?directory}

stop() {
  [ -f "$dir/pids" ] || return 0
  for pid in $(tac "$dir/pids"); do
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 15); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
    kill -9 "$pid" 2>/dev/null || true
  done
}
if [ "$verb" = stop ]; then stop; exit 0; fi

install() {
  command -v apt-get >/dev/null || return 1
  local sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
  $sudo true 2>/dev/null || return 1
  $sudo apt-get update -qq >/dev/null 2>&1 &&
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      ceph-mon ceph-osd radosgw >/dev/null 2>&1
}
{ command -v radosgw && command -v ceph-osd; } >/dev/null || install || exit 3

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port); monitor=$(free_port); key=testkey; secret=testsecret
rm -rf "$dir"; mkdir -p "$dir"/{mon,osd,run,log}
fsid=$(cat /proc/sys/kernel/random/uuid)
export CEPH_CONF=$dir/ceph.conf
cat >"$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon_host = v2:127.0.0.1:$monitor
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_service_mode = crc
ms_mon_cluster_mode = crc
run_dir = $dir/run
admin_socket =
pid_file = $dir/run/\$name.pid
log_file = $dir/log/\$name.log
crash_dir = $dir/log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 0
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
[mon.a]
mon_data = $dir/mon
[osd.0]
osd_data = $dir/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
osd_op_num_shards = 2
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$port
rgw_enable_usage_log = false
rgw_run_sync_thread = false
CONF
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor]" "$dir/monmap" >/dev/null
ceph-mon --mkfs -i a --monmap "$dir/monmap" 2>>"$dir/log/boot.err"
spawn() { setsid "$@" >>"$dir/log/boot.err" 2>&1 </dev/null & echo $! >>"$dir/pids"; }
trap 'status=$?; [ $status = 0 ] || stop; exit $status' EXIT
spawn ceph-mon -f -i a
uuid=$(cat /proc/sys/kernel/random/uuid)
ceph --connect-timeout 30 osd new "$uuid" 0 >/dev/null 2>>"$dir/log/boot.err"
ceph-osd -i 0 --mkfs --osd-uuid "$uuid" 2>>"$dir/log/boot.err"
spawn ceph-osd -f -i 0
for _ in $(seq 300); do ceph osd stat 2>/dev/null | grep -q '1 up' && break; sleep 0.1; done
radosgw-admin -n client.rgw user create --uid test --display-name test \
  --access-key "$key" --secret-key "$secret" >"$dir/log/user.json" 2>>"$dir/log/boot.err"
spawn radosgw -f -n client.rgw
for _ in $(seq 300); do (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
(: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null
cat >"$dir/env.sh" <<ENV
AWS_ENDPOINT_URL=http://127.0.0.1:$port
AWS_ACCESS_KEY_ID=$key
AWS_SECRET_ACCESS_KEY=$secret
AWS_DEFAULT_REGION=us-east-1
AWS_REQUEST_CHECKSUM_CALCULATION=when_required
AWS_RESPONSE_CHECKSUM_VALIDATION=when_required
ENV
