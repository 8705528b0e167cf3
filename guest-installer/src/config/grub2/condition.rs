//! `test` and `[`.

use super::run::Runner;
use crate::{error::Result, fs::Kind};
use std::cmp::Ordering;

/// Deepest nesting of parentheses and negations.
const DEPTH: usize = 16;

struct Test<'r, 'v, 'a> {
    runner: &'r mut Runner<'v>,
    args: &'a [String],
    at: usize,
}

/// Whether an expression is true; one that is no expression is not.
pub(super) fn test(runner: &mut Runner<'_>, args: &[String]) -> Result<bool> {
    let mut test = Test { runner, args, at: 0 };
    test.or(0)
}

impl Test<'_, '_, '_> {
    fn peek(&self, ahead: usize) -> Option<&str> {
        self.args.get(self.at + ahead).map(String::as_str)
    }

    fn eat(&mut self, word: &str) -> bool {
        let there = self.peek(0) == Some(word);
        self.at += usize::from(there);
        there
    }

    fn or(&mut self, depth: usize) -> Result<bool> {
        let mut value = self.and(depth)?;
        while self.eat("-o") {
            value |= self.and(depth)?;
        }
        Ok(value)
    }

    fn and(&mut self, depth: usize) -> Result<bool> {
        let mut value = self.term(depth)?;
        while self.eat("-a") {
            value &= self.term(depth)?;
        }
        Ok(value)
    }

    fn term(&mut self, depth: usize) -> Result<bool> {
        if depth > DEPTH {
            return Ok(false);
        }
        // An operator in the middle decides; `!` may itself be compared.
        if let (Some(a), Some(operator), Some(b)) = (self.peek(0), self.peek(1), self.peek(2))
            && let Some(value) = binary(a, operator, b)
        {
            self.at += 3;
            return Ok(value);
        }
        if self.eat("!") {
            return Ok(!self.term(depth + 1)?);
        }
        if self.eat("(") {
            let value = self.or(depth + 1)?;
            self.eat(")");
            return Ok(value);
        }
        let Some(first) = self.peek(0).map(str::to_owned) else { return Ok(false) };
        if let Some(operand) = self.peek(1).map(str::to_owned)
            && let Some(value) = self.unary(&first, &operand)?
        {
            self.at += 2;
            return Ok(value);
        }
        self.at += 1;
        Ok(!first.is_empty())
    }

    fn unary(&mut self, operator: &str, operand: &str) -> Result<Option<bool>> {
        let file = |runner: &mut Runner<'_>| runner.kind(operand);
        Ok(Some(match operator {
            "-n" => !operand.is_empty(),
            "-z" => operand.is_empty(),
            "-e" => file(self.runner)?.is_some(),
            "-f" => file(self.runner)?.is_some_and(|(kind, _)| kind != Kind::Directory),
            "-d" => file(self.runner)?.is_some_and(|(kind, _)| kind == Kind::Directory),
            "-s" => file(self.runner)?.is_some_and(|(_, size)| size > 0),
            _ => return Ok(None),
        }))
    }
}

fn binary(a: &str, operator: &str, b: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let numbers = || number(a).cmp(&number(b));
    Some(match operator {
        "=" | "==" => a == b,
        "!=" => a != b,
        "<" => a < b,
        "<=" => a <= b,
        ">" => a > b,
        ">=" => a >= b,
        "-eq" => numbers() == Ordering::Equal,
        "-ne" => numbers() != Ordering::Equal,
        "-lt" => numbers() == Ordering::Less,
        "-le" => numbers() != Ordering::Greater,
        "-gt" => numbers() == Ordering::Greater,
        "-ge" => numbers() != Ordering::Less,
        _ => return None,
    })
}
