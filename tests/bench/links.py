"""Hosts on one machine, joined by links that are slower and longer than loopback.

Each host is a network namespace with one TUN device. A relay, this file run as a program, reads every packet that a host sends and gives
it to its receiver as late as the link would: after those before it at the link's rate, and then the delay. No kernel module for slow
links is needed, only root, iproute2 and /dev/net/tun. What a link has no room for is dropped, as a switch would.
"""

import ctypes
import fcntl
import heapq
import json
import os
import pathlib
import select
import struct
import subprocess
import sys
import time

ADDRESSES = "10.88.0."
DEVICE = "link0"
MTU = 1500
# What waits for a link: 8 ms of 1 Gbit/s.
QUEUE_BYTES = 1 << 20
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
CLONE_NEWNET = 0x40000000


class Unavailable(Exception):
    """Why namespaces cannot be made here."""


def ip(*words):
    done = subprocess.run(["ip", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stdout.strip()}")


class Network:
    """Hosts whose pairs are as far from each other as the farther of the two; removed at the end of a `with`.

    `delays_ms` has one entry per host: what a packet takes each way between it and any other.
    """

    def __init__(self, delays_ms, gbit_per_s=1.0):
        self.names, self.relay = [], None
        if not pathlib.Path("/dev/net/tun").exists():
            raise Unavailable("there is no /dev/net/tun")
        if os.geteuid():
            raise Unavailable("namespaces need root")
        try:
            for host in range(len(delays_ms)):
                name = f"brigade-links-{os.getpid()}-{time.monotonic_ns()}-{host}"
                ip("netns", "add", name)
                self.names.append(name)
                ip("-n", name, "link", "set", "lo", "up")
            settings = json.dumps({"names": self.names, "delays_ms": delays_ms, "gbit_per_s": gbit_per_s})
            self.relay = subprocess.Popen([sys.executable, __file__, settings], stdout=subprocess.PIPE, text=True)
            if self.relay.stdout.readline().strip() != "ready":
                raise Unavailable("the relay does not run")
            for host, name in enumerate(self.names):
                ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", DEVICE)
                ip("-n", name, "link", "set", DEVICE, "mtu", str(MTU), "up")
        except BaseException:
            self.close()
            raise

    def address(self, host):
        return f"{ADDRESSES}{host + 1}"

    def command(self, host, command):
        """`command`, to be run on a host."""
        return ["ip", "netns", "exec", self.names[host], *map(str, command)]

    def close(self):
        if self.relay:
            self.relay.terminate()
            self.relay.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def device(name):
    """A TUN device in a namespace, as a file."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"failed to enter {name}")
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI) + bytes(22))
    return file


def relay(names, delays_ms, gbit_per_s):
    files = [device(name) for name in names]
    hosts = {file: host for host, file in enumerate(files)}
    bytes_per_s = gbit_per_s * 1e9 / 8
    free_at = [0.0] * len(files)
    due, number = [], 0
    print("ready", flush=True)
    while True:
        wait = max(0.0, due[0][0] - time.perf_counter()) if due else None
        for file in select.select(files, [], [], wait)[0]:
            host = hosts[file]
            # Some at a time, so that what is due does not wait for a burst to end.
            for _ in range(16):
                try:
                    packet = os.read(file, 65536)
                except BlockingIOError:
                    break
                receiver = packet[19] - 1 if len(packet) >= 20 and packet[0] >> 4 == 4 else -1
                now = time.perf_counter()
                start = max(now, free_at[host])
                if not 0 <= receiver < len(files) or (start - now) * bytes_per_s > QUEUE_BYTES:
                    continue
                free_at[host] = start + len(packet) / bytes_per_s
                delay = max(delays_ms[host], delays_ms[receiver]) / 1e3
                number += 1
                heapq.heappush(due, (free_at[host] + delay, number, receiver, packet))
        now = time.perf_counter()
        while due and due[0][0] <= now:
            _, _, receiver, packet = heapq.heappop(due)
            try:
                os.write(files[receiver], packet)
            except OSError:
                # The receiver's device is down or full: the packet is lost, as on any network.
                pass


if __name__ == "__main__":
    try:
        relay(**json.loads(sys.argv[1]))
    except KeyboardInterrupt:
        pass
