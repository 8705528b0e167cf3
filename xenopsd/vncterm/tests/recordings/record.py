#!/usr/bin/env python3
"""Records what programs print on a terminal of 80x24, and what tmux shows for it.

    apt-get install vim-tiny htop dialog whiptail less tmux vttest cpio debian-installer-12-netboot-amd64
    python3 record.py [NAME...]  # writes NAME.raw and NAME.screen beside itself

`../recorded.rs` feeds each NAME.raw to our terminal and compares the screen with NAME.screen. A session is a command
and what is typed, with a pause before each piece.
"""

import os, pty, select, shutil, signal, struct, subprocess, sys, tempfile, time, fcntl, termios

ROWS, COLS = 24, 80
HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = "/usr/share/common-licenses/GPL-3"

# Debian's installer, from the ramdisk that a guest is started with.
INSTALLER = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/initrd.gz"
RAMDISK = tempfile.mkdtemp() if set(sys.argv[1:]) & {"installer", "installer-text"} or not sys.argv[1:] else ""

# In namespaces of its own, where there is nothing to install on and nothing to change.
def installer(frontend):
    inside = f"DEBIAN_FRONTEND={frontend} exec debconf -o d-i /var/lib/dpkg/info/localechooser.postinst configure 2>/dev/null"
    # debconf must not be the first process there: it ends when any child of its does.
    outside = f"mount -t proc proc {RAMDISK}/proc; mount --bind /dev {RAMDISK}/dev; chroot {RAMDISK} /bin/sh -c '{inside}'; :"
    return ["unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "sh", "-c", outside]


# name: (TERM, command, typed)
SESSIONS = {
    "installer": ("linux", installer("newt"), ["\x1b[B", "\x1b[B", "\x1b[6~"]),
    "installer-text": ("linux", installer("text"), ["12\r"]),
    # Each screen is left with Return; the menus' items are numbers.
    "vttest-cursor": ("vt100", ["vttest"], ["1\r"]),
    "vttest-autowrap": ("vt100", ["vttest"], ["1\r", "\r", "\r"]),
    "vttest-controls": ("vt100", ["vttest"], ["1\r"] + ["\r"] * 4),
    "vttest-zeros": ("vt100", ["vttest"], ["1\r"] + ["\r"] * 5),
    "vttest-scroll": ("vt100", ["vttest"], ["2\r", "\r"]),
    "vttest-rendition": ("vt100", ["vttest"], ["2\r"] + ["\r"] * 12),
    "vttest-edit": ("vt100", ["vttest"], ["8\r"] + ["\r"] * 5),
    "vim": ("linux", ["vim.tiny", "-u", "NONE", "-c", "set nocp ruler number", TEXT],
            ["\x06", "\x06", "20j", "\x19\x19\x19", "dd", "p", "iinserted \t text\x1b", "/Free\r", "zt", "G", "5\x15", ":vsplit\r"]),
    "vim-left": ("xterm-256color", ["sh", "-c", f"echo before; vim.tiny -u NONE {TEXT}; echo after"], ["\x06", ":q\r"]),
    "less": ("linux", ["less", TEXT], [" ", " ", "k", "k", "b", "/warranty\r", "5j"]),
    "htop": ("linux", ["unshare", "-pf", "--mount-proc", "htop", "-d", "100"], ["\x1b[B", "\x1b[B", "t", "/sh"]),
    "dialog": ("linux", ["dialog", "--colors", "--checklist", "Choose \\Z1some\\Zn", "15", "50", "6",
                         "a", "first", "on", "b", "second", "off", "c", "third", "on"], ["\x1b[B", " ", "\t"]),
    "dialog-gauge": ("xterm-256color", ["sh", "-c", "for n in 1 30 57; do echo $n; done | dialog --gauge Copying 8 40"], []),
    "newt-menu": ("linux", ["whiptail", "--title", "[!!] Partition disks", "--backtitle", "Installer", "--menu",
                            "The installer can guide you through partitioning a disk.", "18", "70", "6",
                            "guided", "use entire disk", "lvm", "use entire disk and set up LVM", "manual", "Manual"],
                  ["\x1b[B", "\x1b[B", "\t"]),
    "newt-utf8": ("linux", ["whiptail", "--title", "Sprache / 言語 / Язык", "--radiolist", "Wählen Sie", "15", "60", "4",
                            "de", "Deutsch – ä ö ü ß", "on", "ja", "日本語", "off", "ru", "Русский", "off", "el", "Ελληνικά", "off"],
                  ["\x1b[B"]),
    "boot": ("linux", ["sh", "-c", f"head -c 9000 {TEXT}; printf '\\033[1;32m  OK  \\033[0m] Started\\r\\n\\033[31mFAILED\\033[m\\r\\nlogin: '"], []),
}


def record(term, command, typed):
    """What the command prints until it has been quiet for a while after the last key."""
    # The installer looks things up between two screens.
    quiet = 2.0 if command[0] == "unshare" else 0.4
    pid, fd = pty.fork()
    if pid == 0:
        # Before there is anyone who asks for it.
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLS, 0, 0))
        os.environ.clear()
        os.environ.update(TERM=term, PATH="/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8", HOME="/nonexistent",
                          NCURSES_NO_UTF8_ACS="1")
        os.execvp(command[0], command)
    out = b""

    def drain():
        nonlocal out
        patience = 5.0 if not out else quiet
        while select.select([fd], [], [], patience)[0]:
            patience = quiet
            try:
                more = os.read(fd, 65536)
            except OSError:
                return
            # Programs ask what terminal this is; answer as it would.
            for question, answer in ((b"\x1b[c", b"\x1b[?6c"), (b"\x1b[0c", b"\x1b[?6c"), (b"\x1b[6n", b"\x1b[1;1R"), (b"\x1b[5n", b"\x1b[0n")):
                if question in more:
                    os.write(fd, answer)
            out += more
            if not more:
                return

    drain()
    for keys in typed:
        os.write(fd, keys.encode())
        drain()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(fd)
    return out


def tmux_screen(raw):
    """What tmux shows for it."""
    socket = f"vncterm-{os.getpid()}"
    def tmux(*arguments):
        return subprocess.run(["tmux", "-u", "-L", socket, *arguments], check=True, capture_output=True).stdout
    path = f"/tmp/{socket}.raw"
    with open(path, "wb") as file:
        file.write(raw)
    tmux("-f", "/dev/null", "new-session", "-d", "-x", str(COLS), "-y", str(ROWS),
         f"stty raw -echo; cat {path}; tmux -L {socket} wait-for -S done; sleep 1000")
    tmux("set", "-g", "status", "off")
    tmux("wait-for", "done")
    time.sleep(0.3)
    screen = tmux("capture-pane", "-p")
    tmux("kill-server")
    os.unlink(path)
    return screen


def unpack():
    ramdisk = subprocess.run(["gzip", "-dc", INSTALLER], check=True, capture_output=True).stdout
    subprocess.run(["cpio", "-id", "--quiet"], cwd=RAMDISK, input=ramdisk, check=True)


def main():
    names = sys.argv[1:] or SESSIONS
    if RAMDISK:
        unpack()
    for name in names:
        raw = record(*SESSIONS[name])
        screen = tmux_screen(raw).decode()
        lines = [line.rstrip() for line in screen.split("\n")][:ROWS]
        with open(f"{HERE}/{name}.raw", "wb") as file:
            file.write(raw)
        with open(f"{HERE}/{name}.screen", "w") as file:
            file.write("\n".join(lines) + "\n")
        print(name, len(raw))
    if RAMDISK:
        shutil.rmtree(RAMDISK)


main()
