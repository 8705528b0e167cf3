"""Runs in dom0. Times plugging and unplugging of a disk and an interface through the daemon and with `xl`, in turn.

    call ──► (xl's process, or VBD.add, VBD.plug and the task's end) ──► returned ─┐
      └────► backend and frontend both Connected, as a watch tells ────────────────┴──► the later of both is the time

Unplugging is over when both directories are gone and the call has returned. Prints `MEASURE what who microseconds`.

usage: measure.py ROUNDS OUR_DOMID XL_DOMID
"""
import json, os, shutil, socket, struct, subprocess, sys, threading, time

ROUNDS, OURS, XL = (int(word) for word in sys.argv[1:])
SCRIPTS = "/etc/xen/scripts"
ONE_LINE = {
    # 7:0 is /dev/loop0.
    "block": '[ "$1" != add ] || xenstore-write "$XENBUS_PATH/physical-device" 7:0 '
    '"$XENBUS_PATH/hotplug-status" connected',
    "vif-bridge": '[ "$1" != online ] || { ip link set "$vif" master xenbr0 up && '
    'xenstore-write "$XENBUS_PATH/hotplug-status" connected; }',
}
CONNECTED = b"4"
LIMIT = 60
READ, WATCH, UNWATCH, EVENT, ERROR = 2, 4, 5, 15, 16


class Store:
    """A connection to xenstored."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("/run/xenstored/socket")
        self.socket.settimeout(LIMIT)

    def receive(self):
        header = self.exactly(16)
        kind, _, _, length = struct.unpack("<IIII", header)
        return kind, self.exactly(length)

    def exactly(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "xenstored has closed"
            data += more
        return data

    def ask(self, kind, *words):
        """The reply; watch events that come before it are dropped: the caller looks anyway."""
        payload = b"".join(word.encode() + b"\0" for word in words)
        self.socket.sendall(struct.pack("<IIII", kind, 0, 0, len(payload)) + payload)
        while True:
            replied, data = self.receive()
            if replied != EVENT:
                return None if replied == ERROR else data

    def until(self, paths, wanted):
        """The time when all the nodes are as wanted. The watches are there when `ready` is set."""
        while not all(wanted(self.ask(READ, path)) for path in paths):
            while self.receive()[0] != EVENT:
                pass
        return time.monotonic()


def states(kind, domid, number):
    front = f"/local/domain/{domid}/device/{kind}/{number}/state"
    return [f"/local/domain/0/backend/{kind}/{domid}/{number}/state", front]


def timed(what, who, device, wanted, act):
    """One measurement: `act` on this thread, the device's states on another."""
    store, paths, seen = Store(), states(*device), []
    for path in paths:
        # A watch of a connection's own fires once at its registration.
        store.ask(WATCH, path, "t")
    waiter = threading.Thread(target=lambda: seen.append(store.until(paths, wanted)))
    waiter.start()
    begun = time.monotonic()
    act()
    returned = time.monotonic()
    waiter.join()
    assert seen, f"{what} {who}: the device is not as wanted"
    store.socket.close()
    for suffix, end in [("", max(returned, seen[0])), ("-call", returned)]:
        print("MEASURE", what + suffix, who, round((end - begun) * 1e6), flush=True)


class Daemon:
    """The daemon's JSON-RPC."""

    def __init__(self):
        self.last = self.call("UPDATES.last_id")

    def call(self, method, **arguments):
        arguments["debug_info"] = "bench"
        body = json.dumps({"method": method, "params": [arguments], "id": 1}).encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect("/var/lib/xcp/xenopsd.json")
            head = f"POST / HTTP/1.1\r\nHost: dom0\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
        answer = json.loads(reply.split(b"\r\n\r\n", 1)[1])
        assert answer["error"] is None, f"{method}: {answer['error']}"
        return answer["result"]

    def task(self, method, **arguments):
        """A call that answers with a task, to its end: what a management layer does."""
        task = self.call(method, **arguments)
        while True:
            state = self.call("Task.stat", id=task)["state"]
            if state[0] == "Completed":
                return self.call("Task.destroy", id=task)
            assert state[0] == "Pending", f"{method}: {state}"
            self.last = self.call("UPDATES.get", last_id=self.last, timeout=30)[2]


def xl(*words):
    def run():
        done = subprocess.run(["xl", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, f"xl {words}: {done.stderr}"

    return run


def one_line_scripts():
    for name, line in ONE_LINE.items():
        with open(f"{SCRIPTS}/{name}", "w") as script:
            script.write(f"#!/bin/sh\n{line}\n")


def stock_scripts():
    for name in ONE_LINE:
        shutil.copy2(f"/root/stock-scripts/{name}", f"{SCRIPTS}/{name}")


def main():
    daemon = Daemon()
    records = {kind: json.load(open(f"/root/{kind}.json")) for kind in ("vbd", "vif")}
    numbers = {"vbd": 51792, "vif": 0}
    attach = {
        "vbd": ("block-attach", str(XL), "phy:" + records["vbd"]["backend"][1], "xvdf", "w"),
        "vif": ("network-attach", str(XL), "bridge=xenbr0", "mac=00:16:3e:00:00:77"),
    }
    detach = {"vbd": ("block-detach", str(XL), "51792"), "vif": ("network-detach", str(XL), "0")}

    def plug(kind):
        name = kind.upper()
        device = daemon.call(f"{name}.add", **{kind: records[kind]})
        daemon.task(f"{name}.plug", id=device)

    def unplug(kind):
        name = kind.upper()
        daemon.task(f"{name}.unplug", id=records[kind]["id"], force=False)
        daemon.call(f"{name}.remove", id=records[kind]["id"])

    def connected(state):
        return state == CONNECTED

    def gone(state):
        return state is None

    os.mkdir("/root/stock-scripts")
    for name in ONE_LINE:
        shutil.copy2(f"{SCRIPTS}/{name}", f"/root/stock-scripts/{name}")
    for number in range(ROUNDS):
        for kind in ("vbd", "vif"):
            device, theirs = (kind, OURS, numbers[kind]), (kind, XL, numbers[kind])
            timed(f"{kind}-plug", "xenopsd", device, connected, lambda: plug(kind))
            timed(f"{kind}-unplug", "xenopsd", device, gone, lambda: unplug(kind))
            for who, scripts in [("xl-stock", stock_scripts), ("xl-line", one_line_scripts)]:
                scripts()
                timed(f"{kind}-plug", who, theirs, connected, xl(*attach[kind]))
                timed(f"{kind}-unplug", who, theirs, gone, xl(*detach[kind]))
    stock_scripts()


main()
