#!/bin/sh
# Makes a small network of a client and three machines in the namespaces that it is started in (unshare --mount --net --pid), and
# runs a command on the client: /etc and /run are the client's own where programs keep trust, logins and sockets, so that
# everything may be typed as people type it, and nothing is left on the machine.
#   lan.sh COMMAND…
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/lock /run/etc /run/etc.work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work /etc
rm -rf /etc/docker /etc/containerd /etc/containers/certs.d /etc/pier
mkdir /etc/pier
for dir in /var/lib/docker /var/lib/containerd /var/lib/containers; do
  mkdir -p "$dir" # as the programs would
  mount -t tmpfs tmpfs "$dir"
done

ip link set lo up
ip link add name lan0 type bridge
ip addr add 10.99.0.1/24 dev lan0
ip link set lan0 up
for i in 1 2 3; do
  echo "10.99.0.1$i registry$i.lan node$i" >>/etc/hosts
  ip netns add "node$i"
  ip link add name "port$i" type veth peer name eth0 netns "node$i"
  ip link set "port$i" master lan0 up
  ip -n "node$i" link set lo up
  ip -n "node$i" addr add "10.99.0.1$i/24" dev eth0
  ip -n "node$i" link set eth0 up
done
exec "$@"
