//! The script's syntax: words with quotes and variables, commands, and the blocks around them.

use crate::error::{Error, Result};

/// Deepest nesting of blocks; generated files have four.
const DEPTH: usize = 32;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// As it is.
    Text(String),
    /// A variable; split at white space unless quoted.
    Variable { name: String, quoted: bool },
}

/// A word; `quoted` when any of it was in quotes, so that it stays even when it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) parts: Vec<Part>,
    pub(super) quoted: bool,
}

impl Word {
    /// The word when it is plain text without quotes: only such words are keywords.
    fn plain(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }

    fn push(&mut self, c: char) {
        if let Some(Part::Text(text)) = self.parts.last_mut() {
            text.push(c);
        } else {
            self.parts.push(Part::Text(c.to_string()));
        }
    }
}

pub(super) type Block = Vec<Statement>;

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command with its arguments, and for `menuentry` and `submenu` a block.
    Command { line: usize, words: Vec<Word>, block: Option<Block> },
    /// `if` and its `elif`s with their conditions, and `else`.
    If { branches: Vec<(Block, Block)>, otherwise: Block },
    /// `while`, or `until` when `negate`.
    While { condition: Block, negate: bool, body: Block },
    /// `for`.
    For { name: String, words: Vec<Word>, body: Block },
    /// `function`.
    Function { name: String, body: Block },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    End,
}

struct Parser<'a> {
    file: &'a str,
    tokens: Vec<(usize, Token)>,
    at: usize,
}

/// Parses a script.
pub(super) fn parse(file: &str, text: &str) -> Result<Block> {
    let mut parser = Parser { file, tokens: tokens(file, text)?, at: 0 };
    let (block, _) = parser.block(&[], 0)?;
    Ok(block)
}

fn error(file: &str, line: usize, why: impl Into<String>) -> Error {
    Error::Config { file: file.to_owned(), line, why: why.into() }
}

fn tokens(file: &str, text: &str) -> Result<Vec<(usize, Token)>> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    let mut word: Option<Word> = None;
    while let Some(c) = chars.next() {
        let (at_word, first_line) = (word.is_some(), line);
        match c {
            '\n' | ';' => {
                found.extend(word.take().map(|w| (line, Token::Word(w))));
                found.push((line, Token::End));
                line += usize::from(c == '\n');
            }
            c if c.is_whitespace() => found.extend(word.take().map(|w| (line, Token::Word(w)))),
            '#' if !at_word => while chars.next_if(|&c| c != '\n').is_some() {},
            '\\' => match chars.next() {
                Some('\n') => line += 1,
                other => {
                    let word = word.get_or_insert_default();
                    word.quoted = true;
                    if let Some(c) = other {
                        word.push(c);
                    }
                }
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                        None => return Err(error(file, first_line, "a quote has no end")),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$')) => word.push(c),
                            Some('\n') => line += 1,
                            Some(c) => {
                                word.push('\\');
                                word.push(c);
                            }
                            None => {}
                        },
                        Some('$') => variable(&mut chars, word, true),
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                        None => return Err(error(file, first_line, "a quote has no end")),
                    }
                }
            }
            '$' => variable(&mut chars, word.get_or_insert_default(), false),
            c => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word.map(|w| (line, Token::Word(w))));
    found.push((line, Token::End));
    Ok(found)
}

/// What follows a `$`.
fn variable(chars: &mut std::iter::Peekable<std::str::Chars>, word: &mut Word, quoted: bool) {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        while let Some(c) = chars.next_if(|&c| c != '}' && c != '\n') {
            name.push(c);
        }
        chars.next_if_eq(&'}');
    } else if let Some(c) = chars.next_if(|c| "?@*#".contains(*c) || c.is_ascii_digit()) {
        name.push(c);
    } else {
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
    }
    if name.is_empty() {
        word.push('$');
    } else {
        word.parts.push(Part::Variable { name, quoted });
    }
}

impl Parser<'_> {
    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(line, _)| *line)
    }

    fn error(&self, why: impl Into<String>) -> Error {
        error(self.file, self.line(), why)
    }

    fn word(&mut self) -> Option<Word> {
        let (_, Token::Word(word)) = self.tokens.get(self.at)? else { return None };
        self.at += 1;
        Some(word.clone())
    }

    /// The keyword that is next, when it is one of these.
    fn keyword(&self, wanted: &[&'static str]) -> Option<&'static str> {
        let (_, Token::Word(word)) = self.tokens.get(self.at)? else { return None };
        wanted.iter().copied().find(|w| word.plain() == Some(w))
    }

    fn skip_ends(&mut self) {
        while matches!(self.tokens.get(self.at), Some((_, Token::End))) {
            self.at += 1;
        }
    }

    /// Statements up to one of the closing words, which is taken.
    fn block(&mut self, closing: &[&'static str], depth: usize) -> Result<(Block, &'static str)> {
        if depth > DEPTH {
            return Err(self.error("blocks are nested too deeply"));
        }
        let mut block = Vec::new();
        loop {
            self.skip_ends();
            if self.at >= self.tokens.len() {
                return match closing {
                    [] => Ok((block, "")),
                    words => Err(self.error(format!("the file ends without `{}`", words.join("` or `")))),
                };
            }
            if let Some(word) = self.keyword(closing) {
                self.at += 1;
                return Ok((block, word));
            }
            block.push(self.statement(depth)?);
        }
    }

    fn statement(&mut self, depth: usize) -> Result<Statement> {
        let Some(word) = self.keyword(&["if", "while", "until", "for", "function"]) else {
            return self.command(depth);
        };
        self.at += 1;
        match word {
            "if" => {
                let (mut branches, mut next) = (Vec::new(), "elif");
                while next == "elif" {
                    let (condition, _) = self.block(&["then"], depth + 1)?;
                    let (body, end) = self.block(&["elif", "else", "fi"], depth + 1)?;
                    branches.push((condition, body));
                    next = end;
                }
                let otherwise = if next == "else" { self.block(&["fi"], depth + 1)?.0 } else { Vec::new() };
                Ok(Statement::If { branches, otherwise })
            }
            "while" | "until" => {
                let (condition, _) = self.block(&["do"], depth + 1)?;
                let (body, _) = self.block(&["done"], depth + 1)?;
                Ok(Statement::While { condition, negate: word == "until", body })
            }
            "for" => {
                let name = self.name()?;
                if self.keyword(&["in"]).is_none() {
                    return Err(self.error("`for` without `in`"));
                }
                self.at += 1;
                let words = std::iter::from_fn(|| self.word()).collect();
                self.skip_ends();
                if self.keyword(&["do"]).is_none() {
                    return Err(self.error("`for` without `do`"));
                }
                self.at += 1;
                let (body, _) = self.block(&["done"], depth + 1)?;
                Ok(Statement::For { name, words, body })
            }
            _ => {
                let name = self.name()?;
                self.skip_ends();
                if self.keyword(&["{"]).is_none() {
                    return Err(self.error("`function` without `{`"));
                }
                self.at += 1;
                let (body, _) = self.block(&["}"], depth + 1)?;
                Ok(Statement::Function { name, body })
            }
        }
    }

    fn name(&mut self) -> Result<String> {
        let word = self.word().ok_or_else(|| self.error("a name is missing"))?;
        word.plain().map(str::to_owned).ok_or_else(|| self.error("a name is not plain"))
    }

    fn command(&mut self, depth: usize) -> Result<Statement> {
        let line = self.line();
        let mut words = Vec::new();
        loop {
            if !words.is_empty() && self.keyword(&["{"]).is_some() {
                self.at += 1;
                let (block, _) = self.block(&["}"], depth + 1)?;
                return Ok(Statement::Command { line, words, block: Some(block) });
            }
            match self.word() {
                Some(word) => words.push(word),
                None => return Ok(Statement::Command { line, words, block: None }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_script_is_an_error_with_its_line() {
        for (bad, line) in [
            ("x\nmenuentry 'a' {\n linux /x\n", 4),
            ("if true; then\nx", 2),
            ("echo 'never\nends", 1),
            ("for x do", 1),
            ("function f\nx", 2),
        ] {
            match parse("f", bad) {
                Err(Error::Config { line: found, .. }) => assert_eq!(found, line, "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
        assert!(parse("f", &"if true; then ".repeat(10_000)).is_err());
        assert!(parse("f", &"menuentry a {\n".repeat(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "[a-z{};$\"'\\\\ \n#=]{0,120}") {
            let _ = parse("f", &text);
        }

        #[test]
        fn keywords_in_any_order_end(
            words in proptest::collection::vec(prop::sample::select(
                vec!["if", "then", "else", "elif", "fi", "for", "in", "do", "done", "{", "}", "function", "f", ";", "\n"]
            ), 0..40)
        ) {
            let _ = parse("f", &words.join(" "));
        }
    }
}
