"""Leases of a bridge's network over DHCP (RFC 2131), and what machines boot from, over TFTP (RFC 1350).

    boot_server.py BRIDGE ADDRESS DIRECTORY LOG

A machine whose MAC address ends with byte N is offered N in the last place of ADDRESS, and told to boot the file boot-MAC of
DIRECTORY, whether it is there or not. LOG has a line for each request. The parent ends once both ports are bound.
"""
import os, select, socket, struct, sys

bridge, address, directory, log = sys.argv[1:]
BLOCK = 512
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
RRQ, DATA, TFTP_ACK, ERROR = 1, 3, 4, 5
COOKIE = b"\x63\x82\x53\x63"


def bound(port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    server.bind(("", port))
    return server


def say(*words):
    print(*words, file=log, flush=True)


def options(packet):
    found, at = {}, 240
    while at + 1 < len(packet) and packet[at] != 255:
        if packet[at] == 0:
            at += 1
            continue
        found[packet[at]] = packet[at + 2 : at + 2 + packet[at + 1]]
        at += 2 + packet[at + 1]
    return found


def dhcp(server):
    packet, _ = server.recvfrom(2048)
    if len(packet) < 241 or packet[:3] != b"\1\1\6" or packet[236:240] != COOKIE:
        return
    kind, mac = options(packet).get(53, b"\0")[0], packet[28:34]
    if kind not in (DISCOVER, REQUEST):
        return
    say("discover" if kind == DISCOVER else "request", mac.hex(":"))
    ours = socket.inet_aton(address)
    theirs = ours[:3] + mac[5:6]
    file = b"boot-" + mac.hex().encode()
    answer = b"\2\1\6\0" + packet[4:8] + b"\0\0" + packet[10:12] + bytes(4) + theirs + ours + bytes(4)
    answer += packet[28:44] + bytes(64) + file.ljust(128, b"\0") + COOKIE
    answers = [
        (53, bytes([OFFER if kind == DISCOVER else ACK])),
        (54, ours),
        (51, struct.pack(">I", 3600)),
        (1, b"\xff\xff\xff\0"),
        # iPXE's own: there is no other server that it would have to wait for (no-pxedhcp).
        (175, b"\xb0\1\1"),
    ]
    for number, value in answers:
        answer += bytes([number, len(value)]) + value
    server.sendto(answer + b"\xff", ("255.255.255.255", 68))


def tftp(server, files):
    packet, peer = server.recvfrom(2048)
    kind, number = struct.unpack(">HH", packet[:4]) if len(packet) >= 4 else (0, 0)
    if kind == RRQ:
        name = packet[2:].split(b"\0")[0].decode("ascii", "replace").lstrip("/")
        try:
            with open(os.path.join(directory, os.path.basename(name)), "rb") as file:
                files[peer], number = file.read(), 0
        except OSError:
            say("refused", name)
            return server.sendto(struct.pack(">HH", ERROR, 1) + b"no such file\0", peer)
        say("sent", name)
    # Nothing is sent again by itself: a machine that has missed a block acknowledges the one before again.
    if kind in (RRQ, TFTP_ACK) and peer in files and number <= len(files[peer]) // BLOCK:
        part = files[peer][number * BLOCK : (number + 1) * BLOCK]
        server.sendto(struct.pack(">HH", DATA, number + 1) + part, peer)


leases, files = bound(67), bound(69)
log = open(log, "w")
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for descriptor in (0, 1):
    os.dup2(null, descriptor)
os.dup2(log.fileno(), 2)
sending = {}
while True:
    for ready in select.select([leases, files], [], [])[0]:
        dhcp(ready) if ready is leases else tftp(ready, sending)
