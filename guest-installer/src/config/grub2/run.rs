//! Running a script: variables, control flow, menu entries.

use super::{
    command,
    syntax::{Block, Part, Statement, Word},
};
use crate::{
    config::{Entry, Item, Located, Menu},
    error::{Error, Result},
    fs::Kind,
    limits,
    volumes::Volumes,
};
use std::collections::{HashMap, HashSet};

/// Most statements run for one configuration: a generated one of forty kernels runs some thousands.
const STEPS: usize = 100_000;
/// Deepest nesting of functions, sourced files and submenus.
const DEPTH: usize = 16;
/// Longest value of a variable.
const VALUE: usize = 64 << 10;

/// What a statement leads to, besides its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
    Return,
}

/// Variables and functions.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    pub(super) variables: HashMap<String, String>,
    pub(super) exported: HashSet<String>,
    functions: HashMap<String, Block>,
    arguments: Vec<String>,
    /// The items of the menu that is being made.
    pub(super) items: Vec<Item>,
    /// What `linux` and `initrd` of the entry that is being run said.
    pub(super) entry: Entry,
}

pub(super) struct Runner<'v> {
    pub(super) volumes: &'v mut Volumes,
    pub(super) volume: usize,
    pub(super) context: Context,
    pub(super) status: bool,
    file: String,
    steps: usize,
    entries: usize,
    depth: usize,
}

impl<'v> Runner<'v> {
    pub(super) fn new(volumes: &'v mut Volumes, volume: usize, file: &str) -> Self {
        let dir = file.rsplit_once('/').map_or("", |(dir, _)| dir);
        let root = volumes.grub_name(volume);
        let mut context = Context::default();
        let mut set = |name: &str, value: String| context.variables.insert(name.to_owned(), value);
        set("prefix", format!("({root}){dir}"));
        set("config_directory", format!("({root}){dir}"));
        set("config_file", format!("({root}){file}"));
        set("root", root);
        // What a GRUB of today, built for Xen guests, says of itself.
        set("grub_cpu", "x86_64".to_owned());
        set("grub_platform", "xen".to_owned());
        for feature in [
            "menuentry_id",
            "menuentry_options",
            "timeout_style",
            "platform_search_hint",
            "default_font_path",
        ] {
            set(&format!("feature_{feature}"), "y".to_owned());
        }
        set("feature_all_video_module", "y".to_owned());
        set("feature_200_final", "y".to_owned());
        context.exported = ["root", "prefix"].map(str::to_owned).into();
        Self { volumes, volume, context, status: true, file: file.to_owned(), steps: 0, entries: 0, depth: 0 }
    }

    /// Runs a script and returns its menu.
    pub(super) fn menu(mut self, script: &Block) -> Result<Menu> {
        self.block(script)?;
        let default = self.variable("default").filter(|d| !d.is_empty()).map(str::to_owned);
        // A script without a menu may boot by itself.
        if self.context.items.is_empty() && self.context.entry.kernel.is_some() {
            let entry = std::mem::take(&mut self.context.entry);
            return Ok(Menu::flat(vec![Entry { title: self.file, ..entry }], None));
        }
        Ok(Menu { items: self.context.items, default })
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.context.variables.get(name).map(String::as_str)
    }

    pub(super) fn set(&mut self, name: &str, value: String) -> Result<()> {
        if value.len() > VALUE {
            return Err(Error::too_large("value of a variable", VALUE));
        }
        self.context.variables.insert(name.to_owned(), value);
        Ok(())
    }

    pub(super) fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == DEPTH {
            return Err(Error::too_large("nesting of functions, files and menus", DEPTH));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    /// Where a path of the script is: `(device)/path`, or on `$root`. A device that is not on this disk stands for the
    /// configuration's own volume.
    pub(super) fn locate(&self, path: &str) -> Located {
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device.to_owned(), path),
            None => (self.variable("root").unwrap_or("").to_owned(), path),
        };
        let device = device.trim_start_matches('(').trim_end_matches(')');
        let volume = self.volumes.by_grub_name(device).unwrap_or(self.volume);
        Located { volume, path: path.to_owned() }
    }

    pub(super) fn kind(&mut self, path: &str) -> Result<Option<(Kind, u64)>> {
        let Located { volume, path } = self.locate(path);
        self.volumes.kind(volume, &path)
    }

    pub(super) fn block(&mut self, block: &Block) -> Result<Flow> {
        for statement in block {
            match self.statement(statement)? {
                Flow::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::Next)
    }

    fn step(&mut self) -> Result<()> {
        self.steps += 1;
        if self.steps > STEPS { Err(Error::too_large("statements of a boot script", STEPS)) } else { Ok(()) }
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow> {
        self.step()?;
        match statement {
            Statement::Command { words, block: Some(block), .. } => self.menu_item(words, block),
            Statement::Command { line, words, block: None } => {
                let args = self.expand_all(words)?;
                let result = self.command(&args);
                // A message about a script says where.
                result.map_err(|e| match e {
                    Error::Config { line: 0, file, why } => Error::Config { file, line: *line, why },
                    other => other,
                })
            }
            Statement::If { branches, otherwise } => {
                for (condition, body) in branches {
                    self.block(condition)?;
                    if self.status {
                        return self.block(body);
                    }
                }
                self.status = true;
                self.block(otherwise)
            }
            Statement::While { condition, negate, body } => loop {
                self.step()?;
                self.block(condition)?;
                if self.status == *negate {
                    self.status = true;
                    return Ok(Flow::Next);
                }
                match self.block(body)? {
                    Flow::Break => return Ok(Flow::Next),
                    Flow::Return => return Ok(Flow::Return),
                    Flow::Next | Flow::Continue => {}
                }
            },
            Statement::For { name, words, body } => {
                for value in self.expand_all(words)? {
                    self.step()?;
                    self.set(name, value)?;
                    match self.block(body)? {
                        Flow::Break => break,
                        Flow::Return => return Ok(Flow::Return),
                        Flow::Next | Flow::Continue => {}
                    }
                }
                Ok(Flow::Next)
            }
            Statement::Function { name, body } => {
                self.context.functions.insert(name.clone(), body.clone());
                Ok(Flow::Next)
            }
        }
    }

    fn command(&mut self, args: &[String]) -> Result<Flow> {
        let Some(name) = args.first() else { return Ok(Flow::Next) };
        if let Some(body) = self.context.functions.get(name).cloned() {
            let outer = std::mem::replace(&mut self.context.arguments, args[1..].to_vec());
            let flow = self.deeper(|runner| runner.block(&body));
            self.context.arguments = outer;
            return flow.map(|_| Flow::Next);
        }
        command::run(self, name, &args[1..])
    }

    /// `menuentry` and `submenu`: their blocks run in a copy of the variables, as if they were chosen.
    fn menu_item(&mut self, words: &[Word], block: &Block) -> Result<Flow> {
        let args = self.expand_all(words)?;
        let is_menu = args.first().is_some_and(|a| a == "submenu");
        if !is_menu && args.first().is_none_or(|a| a != "menuentry") {
            // Some other command with a block, which is not known.
            return Ok(Flow::Next);
        }
        self.entries += 1;
        if self.entries > limits::ENTRIES {
            return Err(Error::too_large("boot entries", limits::ENTRIES));
        }
        let (title, id, arguments) = options(&args[1..]);
        let mut inner =
            Context { arguments, items: Vec::new(), entry: Entry::default(), ..self.context.clone() };
        if is_menu {
            // A submenu sees exported variables only.
            inner
                .variables
                .retain(|name, _| self.context.exported.contains(name) || name.starts_with("feature_"));
        }
        let outer = std::mem::replace(&mut self.context, inner);
        let flow = self.deeper(|runner| runner.block(block));
        let done = std::mem::replace(&mut self.context, outer);
        flow?;
        let item = if is_menu {
            Item::Submenu { title, id, items: done.items }
        } else {
            Item::Entry(Entry { title, id, ..done.entry })
        };
        self.context.items.push(item);
        self.status = true;
        Ok(Flow::Next)
    }

    fn expand_all(&mut self, words: &[Word]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for word in words {
            let from = found.len();
            self.expand(word, &mut found);
            bytes += found[from..].iter().map(String::len).sum::<usize>();
            if bytes > VALUE {
                return Err(Error::too_large("length of a command", VALUE));
            }
        }
        Ok(found)
    }

    /// A word's words: an unquoted variable is split at white space, and none at all when it is empty.
    fn expand(&self, word: &Word, found: &mut Vec<String>) {
        let mut current = String::new();
        let mut there = word.quoted;
        for part in &word.parts {
            match part {
                Part::Text(text) => {
                    current += text;
                    there = true;
                }
                Part::Variable { name, quoted } => {
                    let value = self.value(name);
                    if *quoted {
                        current += &value;
                        continue;
                    }
                    let mut pieces = value.split([' ', '\t', '\n']).peekable();
                    while let Some(piece) = pieces.next() {
                        current += piece;
                        there |= !piece.is_empty();
                        if pieces.peek().is_some() && there {
                            found.push(std::mem::take(&mut current));
                            there = false;
                        }
                    }
                }
            }
        }
        if there {
            found.push(current);
        }
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => u8::from(!self.status).to_string(),
            "#" => self.context.arguments.len().to_string(),
            "@" | "*" => self.context.arguments.join(" "),
            _ => match name.parse::<usize>() {
                Ok(0) => String::new(),
                Ok(n) => self.context.arguments.get(n - 1).cloned().unwrap_or_default(),
                Err(_) => self.variable(name).unwrap_or("").to_owned(),
            },
        }
    }
}

/// Title, id and the other arguments of a menu item.
fn options(args: &[String]) -> (String, String, Vec<String>) {
    let (mut id, mut plain) = (String::new(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--id" => id = args.next().cloned().unwrap_or_default(),
            "--class" | "--users" | "--hotkey" | "--source" => drop(args.next()),
            other => match other.strip_prefix("--id=") {
                Some(value) => value.clone_into(&mut id),
                None if other.starts_with("--") => {}
                None => plain.push(other.to_owned()),
            },
        }
    }
    (plain.first().cloned().unwrap_or_default(), id, plain)
}
