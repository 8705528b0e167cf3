//! What `xenopsd --print` writes: the settings file with every setting at its default, and the manual page, both from the
//! definitions of the flags.

use std::fmt::Write as _;
use std::io;

use clap::{Arg, CommandFactory as _, ValueEnum};

use super::{Config, NOT_IN_THE_FILE};
use crate::api;
use crate::edge;

/// Columns of a comment's line.
const WIDTH: usize = 100;

/// Settings of a machine that is not one: nobody's settings file has them.
const SIMULATOR: &str = "simulate";

/// A text of the daemon's about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Printed {
    /// The RPC contract, as markdown
    Contract,
    /// A settings file, with all settings at their defaults
    Settings,
    /// The manual page, for man(1)
    Manual,
    /// How many MiB of memory Xen has free
    FreeMemory,
}

impl Printed {
    /// The text.
    ///
    /// # Errors
    /// That Xen does not answer; none that a writer into memory can have.
    pub fn text(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Contract => Ok(api::schema::document().into_bytes()),
            Self::Settings => Ok(settings().into_bytes()),
            Self::FreeMemory => {
                let mib = edge::free_memory_mib().map_err(io::Error::other)?;
                Ok(format!("{mib}\n").into_bytes())
            }
            Self::Manual => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Config::command()).section("8").render(&mut page)?;
                Ok(page)
            }
        }
    }
}

fn settings() -> String {
    let mut text = "# Settings of xenopsd. Lines are `key = value`; those that are commented out show the defaults.\n\
                    # They override the command line. The daemon reads them when it starts: guests do not notice.\n"
        .to_owned();
    let command = Config::command();
    for argument in command.get_arguments() {
        let Some(key) = argument.get_long() else { continue };
        if !NOT_IN_THE_FILE.contains(&key) && !key.starts_with(SIMULATOR) {
            setting(&mut text, key, argument);
        }
    }
    text
}

fn setting(text: &mut String, key: &str, argument: &Arg) {
    text.push('\n');
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    comment(text, &help);
    let words: Vec<String> =
        argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if argument.get_action().takes_values() && !words.is_empty() {
        comment(text, &format!("One of {}", words.join(", ")));
    }
    let defaults = argument.get_default_values();
    let value = match (defaults.first(), argument.get_action().takes_values()) {
        (Some(value), true) => value.to_string_lossy().into_owned(),
        (_, false) => "false".to_owned(),
        (None, true) => {
            let names = argument.get_value_names().unwrap_or_default();
            format!("<{}>", names.first().map_or("VALUE", |name| name.as_str()))
        }
    };
    // Into memory.
    let _ = writeln!(text, "#{key} = {value}");
}

/// The sentence as a comment, broken between words.
fn comment(text: &mut String, sentence: &str) {
    let mut column = 0;
    for word in sentence.split_whitespace() {
        if column == 0 || column + 1 + word.len() > WIDTH {
            text.push_str(if column == 0 { "#" } else { "\n#" });
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + word.len();
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    fn printed(what: Printed) -> String {
        String::from_utf8(what.text().unwrap()).unwrap()
    }

    #[test]
    fn the_settings_file_changes_nothing_when_its_lines_are_put_in_force() {
        let file = printed(Printed::Settings);
        assert!(file.lines().all(|line| line.len() <= WIDTH), "{file}");
        let in_force: String = file
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| !line.starts_with(' ') && !line.ends_with('>'))
            .fold(String::new(), |all, line| all + line + "\n");
        assert!(in_force.lines().count() > 25, "{in_force}");
        let loaded = load(&in_force, &[]).unwrap();
        assert!(loaded.unknown.is_empty(), "{:?}", loaded.unknown);
        let mut defaults = load("", &[]).unwrap().config;
        defaults.config.clone_from(&loaded.config.config);
        assert_eq!(format!("{:?}", loaded.config), format!("{defaults:?}"));
        for key in ["sockets-path", "hotplug-timeout", "allow-unjailed", "vncterm", "log-json"] {
            assert!(file.contains(&format!("\n#{key} = ")), "{key}");
        }
        assert!(!file.contains("simulate") && !file.contains("#print"), "{file}");
    }

    #[test]
    fn the_manual_is_of_section_8() {
        let page = printed(Printed::Manual);
        assert!(page.contains(".TH xenopsd 8") && page.contains("EXIT STATUS"), "{page}");
    }
}
