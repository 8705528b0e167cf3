//! The same screen seen by viewers of different authors: `xenops screenshot`'s, gtk-vnc (`gvnccapture`), TightVNC
//! (`vncsnapshot`), vncdotool and asyncvnc, each with the encodings that it prefers. The last two also type.

mod common;
mod python;

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{LIMIT, Program};
use xenopsd::rfb::Picture;

/// First VNC port: viewers are told displays.
const VNC_BASE: u16 = 5900;

/// A command's screen.
struct Shown(Program);

impl Shown {
    /// One on which `until` is to be read.
    fn new(command: &str, until: &str) -> Self {
        Self::with(&[], command, until)
    }

    fn with(options: &[&str], command: &str, until: &str) -> Self {
        Self(Program::showing(&[&["-c", command], options].concat(), until))
    }

    fn picture(&self) -> Picture {
        self.0.picture()
    }

    /// Runs a viewer that writes a file.
    fn viewed(&self, program: &str, options: &[&str], file: &Path) {
        let output = self.run(program, options, file);
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn run(&self, program: &str, options: &[&str], file: &Path) -> Output {
        let limit = LIMIT.as_secs().to_string();
        let screen = format!("127.0.0.1:{}", self.0.vnc - VNC_BASE);
        Command::new("timeout")
            .arg(limit)
            .arg(program)
            .args(options)
            .arg(screen)
            .arg(file)
            .env_remove("DISPLAY")
            .output()
            .unwrap()
    }
}

/// TightVNC's viewer is let in with the password, which is what its own `vncpasswd` made of it, and without it is not.
#[test]
fn tight_vnc_knows_the_password() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("password"), "s3cret\n").unwrap();
    let shown = Shown::with(&["--password-file", &path("password")], "printf login:; read rest", "login:");
    // The file that viewers read: the password encrypted with a key that all of them have.
    for (name, text) in [("right", "s3cret"), ("wrong", "s3cre7")] {
        let mut vncpasswd = Command::new("vncpasswd")
            .arg("-f")
            .stdin(Stdio::piped())
            .stdout(File::create(path(name)).unwrap())
            .spawn()
            .unwrap();
        vncpasswd.stdin.take().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
        assert!(vncpasswd.wait().unwrap().success());
    }
    let file = directory.path().join("screen.jpg");
    let refused = shown.run("vncsnapshot", &["-quiet", "-passwd", &path("wrong")], &file);
    assert!(!refused.status.success() && !file.exists());
    shown.viewed("vncsnapshot", &["-quiet", "-passwd", &path("right")], &file);
    assert_eq!(std::fs::read(&file).unwrap()[..3], [0xff, 0xd8, 0xff], "a JPEG file");
}

const PASSWORD: &str = "s3cret";

/// Asks for a name and greets whoever it is, without a cursor.
const LOGIN: &str =
    "printf '\\033[?25l\\033[2J\\033[Hlogin: '; read name; printf \"Welcome, $name.\"; read rest";

/// What it looks like when [`NAME`] was typed.
const ANSWERED: &str = "printf '\\033[?25l\\033[2J\\033[Hlogin: Alice_7\\r\\nWelcome, Alice_7.'; read rest";

/// With what needs a shift key on most keyboards.
const NAME: &str = "Alice_7";

/// The pixels of a file that a viewer wrote, three bytes each.
fn pixels(file: &Path) -> Vec<u8> {
    let mut reader = png::Decoder::new(BufReader::new(File::open(file).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (640, 384));
    match info.color_type {
        png::ColorType::Rgb => pixels,
        png::ColorType::Rgba => pixels.chunks_exact(4).flat_map(|rgba| rgba[..3].to_vec()).collect(),
        other => panic!("{}: {other:?}", file.display()),
    }
}

/// A viewer types a name on a screen with a password and sees the answer.
///
/// `viewer` makes its command of the port and the files `answer.png`, which is what to wait for, `before.png` and
/// `after.png`, which it is to write.
fn logs_in(viewer: impl Fn(u16, [&Path; 3]) -> Command) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("password"), PASSWORD).unwrap();
    let [answer, before, after] = ["answer.png", "before.png", "after.png"].map(path);
    let answered = Shown::new(ANSWERED, "Welcome, Alice_7.").picture();
    std::fs::write(&answer, answered.to_png().unwrap()).unwrap();
    let shown = Shown::with(&["--password-file", path("password").to_str().unwrap()], LOGIN, "login: ");
    let asked = Shown::new("printf '\\033[?25l\\033[2J\\033[Hlogin: '; read rest", "login: ").picture();

    let viewer = viewer(shown.0.vnc, [&answer, &before, &after]);
    let mut limited = Command::new("timeout");
    python::succeed(
        limited.arg(LIMIT.as_secs().to_string()).arg(viewer.get_program()).args(viewer.get_args()),
    );
    assert!(pixels(&before) == asked.rgb(), "before the name is typed");
    assert!(pixels(&after) == answered.rgb(), "after the name was typed");
}

#[test]
fn vncdotool_logs_in() {
    let vncdo = python::program("vncdo");
    logs_in(|port, [answer, before, after]| {
        let mut command = Command::new(&vncdo);
        command.args(["-s", &format!("127.0.0.1::{port}"), "-p", PASSWORD]);
        command.arg("capture").arg(before).args(["type", NAME, "key", "enter"]);
        command.arg("expect").arg(answer).args(["0", "capture"]).arg(after);
        command
    });
}

#[test]
fn asyncvnc_logs_in() {
    let python = python::program("python");
    logs_in(|port, [answer, before, after]| {
        let mut command = Command::new(&python);
        command.arg(python::source("login.py")).args([&port.to_string(), PASSWORD, NAME]);
        command.args([answer, before, after]);
        command
    });
}

/// No cursor; the first cell red, then text, then bars of colour beyond those that a packed palette has room for.
const COLOURFUL: &str = "printf '\\033[?25l\\033[2J\\033[H\\033[41m \\033[0mhello \\033[1;32mbright\\033[0m\\r\\n'; \
    for i in $(seq 16 255); do printf \"\\033[48;5;${i}m\\033[38;5;$((271 - i))m$((i % 10))\"; done; \
    printf '\\033[0m the-end'; read rest";

#[test]
fn the_picture_shows_what_is_on_the_screen() {
    let shown = Shown::new("printf '\\033[?25l\\033[2J\\033[H\\033[41m \\033[0mhello'; read rest", "hello");
    let picture = shown.picture();
    assert_eq!((picture.width(), picture.height()), (640, 384));
    let pixel = |x: usize, y: usize| {
        let at = (y * 640 + x) * 3;
        [picture.rgb()[at], picture.rgb()[at + 1], picture.rgb()[at + 2]]
    };
    let [red, green, blue] = pixel(4, 8);
    assert!(red > 100 && green < 50 && blue < 50, "the first cell is red: {red} {green} {blue}");
    // `hello` has pixels in its five cells, and nothing has any beside and below.
    let lit = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| {
        y.flat_map(|y| x.clone().map(move |x| (x, y))).filter(|(x, y)| pixel(*x, *y) != [0; 3]).count()
    };
    assert!(lit(8..48, 0..16) > 40);
    assert_eq!(lit(48..640, 0..16) + lit(0..640, 16..384), 0);
    assert_eq!(picture.colours(), 3);
}

/// gtk-vnc's decoder makes the same pixels of what it is sent as ours of raw ones.
#[test]
fn gtk_vnc_sees_the_same_pixels() {
    let shown = Shown::new(COLOURFUL, "the-end");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("screen.png");
    shown.viewed("gvnccapture", &["-q"], &file);
    let seen = pixels(&file);
    let picture = shown.picture();
    assert!(picture.colours() > 100, "{} colours", picture.colours());
    let different = seen.iter().zip(picture.rgb()).filter(|(one, other)| one != other).count();
    assert_eq!(different, 0, "bytes of {}", seen.len());
}

/// TightVNC of 2002, which speaks 3.3: every encoding gives it the same file, and another screen another one.
#[test]
fn tight_vnc_sees_the_same_whatever_the_encoding() {
    let directory = tempfile::tempdir().unwrap();
    let taken = |shown: &Shown, encodings: &str| {
        let file = directory.path().join("screen.jpg");
        shown.viewed("vncsnapshot", &["-quiet", "-encodings", encodings], &file);
        std::fs::read(&file).unwrap()
    };
    let shown = Shown::new(COLOURFUL, "the-end");
    let raw = taken(&shown, "raw");
    assert_eq!(raw[..3], [0xff, 0xd8, 0xff], "a JPEG file");
    for encodings in ["hextile raw", "copyrect hextile", "tight zlib hextile copyrect raw"] {
        assert!(taken(&shown, encodings) == raw, "{encodings} gives another picture than raw");
    }
    let other = Shown::new("printf '\\033[?25l\\033[2Jother'; read rest", "other");
    assert!(taken(&other, "raw") != raw);
}
