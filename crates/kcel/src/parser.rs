//! From tokens to a tree: precedence climbing over CEL's grammar (the language's definition, "Syntax"). Macros are
//! expanded as calls are made.

mod macros;
mod primary;

use crate::{
    ast::{Call, Expr, ExprKind, Id, Literal, op},
    error::CompileErrors,
    lexer::{Tok, Token, tokens},
};

/// The largest expression, in characters (cel-go's default).
pub const EXPRESSION_CHARS_MAX: usize = 100_000;
/// The deepest nesting, each operator of a chain counted (cel-go's default).
pub const EXPRESSION_DEPTH_MAX: usize = 250;

const TOO_DEEP: &str = "expression recursion limit exceeded: 250";
const TOO_LONG: &str = "max recursion depth exceeded";

/// What an operand or a closing mark is expected to be, as it is said when the text ends too early.
const OPERANDS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// A parsed expression: the tree, and where in the source each node begins.
pub(crate) struct Parsed {
    pub(crate) root: Expr,
    pub(crate) offsets: Vec<u32>,
}

/// Which macros beyond the language's own are understood.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MacroSet {
    /// `cel.bind(name, value, expression)`.
    pub(crate) bindings: bool,
}

/// Ends the parsing: the error has been reported.
struct Abort;

type Parse<T> = Result<T, Abort>;

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    offsets: Vec<u32>,
    macros: MacroSet,
    errors: &'s mut CompileErrors,
}

/// Parses `source`; what is wrong is reported to `errors`.
pub(crate) fn parse(source: &str, macros: MacroSet, errors: &mut CompileErrors) -> Option<Parsed> {
    let chars = source.chars().count();
    if chars > EXPRESSION_CHARS_MAX {
        errors.report_nowhere(format!(
            "expression code point size exceeds limit: size: {chars}, limit {EXPRESSION_CHARS_MAX}"
        ));
        return None;
    }
    let tokens = tokens(source, errors);
    let mut parser = Parser { source, tokens, at: 0, depth: 0, offsets: vec![0], macros, errors };
    let root = parser.expr().ok()?;
    if parser.tok() != Tok::End {
        if parser.peek(1) == Tok::End {
            parser.extraneous("<EOF>");
        } else {
            parser.mismatch("<EOF>");
        }
        return None;
    }
    let offsets = parser.offsets;
    Some(Parsed { root, offsets })
}

impl Parser<'_> {
    fn token(&self) -> Token {
        // The last token is the end, which is never stepped over.
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn tok(&self) -> Tok {
        self.token().tok
    }

    fn peek(&self, ahead: usize) -> Tok {
        self.tokens.get(self.at + ahead).map_or(Tok::End, |token| token.tok)
    }

    fn text(&self, token: Token) -> &str {
        &self.source[token.start as usize..token.end as usize]
    }

    fn step(&mut self) -> Token {
        let token = self.token();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn is(&self, mark: &str) -> bool {
        matches!(self.tok(), Tok::Mark(found) if found == mark)
    }

    /// Steps over `mark` if it is next.
    fn take(&mut self, mark: &str) -> Option<Token> {
        self.is(mark).then(|| self.step())
    }

    fn want(&mut self, mark: &'static str) -> Parse<Token> {
        match self.take(mark) {
            Some(token) => Ok(token),
            None if matches!(self.peek(1), Tok::Mark(next) if next == mark) => {
                self.extraneous(&format!("'{mark}'"));
                Ok(self.step())
            }
            None => Err(self.mismatch(&format!("'{mark}'"))),
        }
    }

    /// Reports a token that is one too many, and steps over it.
    fn extraneous(&mut self, expected: &str) {
        let token = self.step();
        let message = format!("Syntax error: extraneous input '{}' expecting {expected}", self.text(token));
        self.errors.report(token.start, message);
    }

    /// Reports that something else was expected here.
    fn mismatch(&mut self, expected: &str) -> Abort {
        let token = self.token();
        let text = if token.tok == Tok::End { "<EOF>" } else { self.text(token) };
        let message = format!("Syntax error: mismatched input '{text}' expecting {expected}");
        self.errors.report(token.start, message);
        Abort
    }

    fn new_id(&mut self, offset: u32) -> Id {
        self.offsets.push(offset);
        (self.offsets.len() - 1) as Id
    }

    fn node(&mut self, offset: u32, kind: ExprKind) -> Expr {
        Expr { id: self.new_id(offset), kind }
    }

    fn literal(&mut self, offset: u32, literal: Literal) -> Expr {
        self.node(offset, ExprKind::Literal(literal))
    }

    /// Reports an error that does not end the parsing and stands in for what would have been there.
    fn error(&mut self, offset: u32, message: impl Into<String>) -> Expr {
        self.errors.report(offset, message);
        self.node(offset, ExprKind::Missing)
    }

    /// Counts one level of nesting, or one link of a chain, with the message for too many of them.
    fn deeper(&mut self, message: &str) -> Parse<()> {
        self.depth += 1;
        if self.depth > EXPRESSION_DEPTH_MAX {
            self.errors.report_nowhere(message);
            return Err(Abort);
        }
        Ok(())
    }

    fn call(&mut self, offset: u32, function: &str, args: Vec<Expr>) -> Expr {
        let call = Call { target: None, function: function.to_owned(), args };
        self.node(offset, ExprKind::Call(Box::new(call)))
    }

    /// `or ('?' or ':' expr)?`
    fn expr(&mut self) -> Parse<Expr> {
        let outside = self.depth;
        self.deeper(TOO_DEEP)?;
        let condition = self.climb(0)?;
        let found = match self.take("?") {
            None => condition,
            Some(mark) => {
                let truthy = self.climb(0)?;
                self.want(":")?;
                let falsy = self.expr()?;
                self.call(mark.start, op::CONDITIONAL, vec![condition, truthy, falsy])
            }
        };
        self.depth = outside;
        Ok(found)
    }

    /// Operators of `level` and above, all of them left-associative. One function for all levels, because its frames
    /// are what nesting costs of the stack.
    fn climb(&mut self, level: usize) -> Parse<Expr> {
        let outside = self.depth;
        let mut left = self.unary()?;
        while let Tok::Mark(mark) = self.tok() {
            let Some((found, function)) = operator(mark).filter(|(found, _)| *found >= level) else {
                break;
            };
            if found < RELATIONS {
                left = self.logic(left, mark, function, found)?;
                continue;
            }
            let offset = self.step().start;
            self.deeper(TOO_LONG)?;
            let right = self.climb(found + 1)?;
            left = self.call(offset, function, vec![left, right]);
        }
        self.depth = outside;
        Ok(left)
    }

    /// A chain of `||` or of `&&`, balanced so that long chains stay shallow.
    fn logic(&mut self, first: Expr, mark: &'static str, function: &str, level: usize) -> Parse<Expr> {
        let mut terms = vec![Some(first)];
        let mut marks = Vec::new();
        while let Some(token) = self.take(mark) {
            marks.push(token.start);
            terms.push(Some(self.climb(level + 1)?));
        }
        Ok(self.balance(function, &mut terms, &marks))
    }

    /// `terms` has one element more than `marks`, each of which is taken once.
    fn balance(&mut self, function: &str, terms: &mut [Option<Expr>], marks: &[u32]) -> Expr {
        if marks.is_empty() {
            return terms[0].take().unwrap_or(Expr { id: 0, kind: ExprKind::Missing });
        }
        let middle = marks.len() / 2;
        let (left, right) = terms.split_at_mut(middle + 1);
        let left = self.balance(function, left, &marks[..middle]);
        let right = self.balance(function, right, &marks[middle + 1..]);
        self.call(marks[middle], function, vec![left, right])
    }

    /// Pairs of `!` or of `-` cancel each other; a single `-` before a number is part of the number.
    fn unary(&mut self) -> Parse<Expr> {
        for (mark, function) in [("!", op::NOT), ("-", op::NEGATE)] {
            let offset = self.token().start;
            if mark == "-" && self.is("-") && matches!(self.peek(1), Tok::Int | Tok::Float) {
                return self.member();
            }
            let mut count = 0;
            while self.take(mark).is_some() {
                count += 1;
            }
            if count > 0 {
                let operand = self.member()?;
                return Ok(if count % 2 == 0 { operand } else { self.call(offset, function, vec![operand]) });
            }
        }
        self.member()
    }
}

/// The level of relations; those below it are `||` and `&&`.
const RELATIONS: usize = 2;

/// The level and the function of a binary operator.
fn operator(mark: &str) -> Option<(usize, &'static str)> {
    Some(match mark {
        "||" => (0, op::OR),
        "&&" => (1, op::AND),
        "<" => (RELATIONS, "_<_"),
        "<=" => (RELATIONS, "_<=_"),
        ">=" => (RELATIONS, "_>=_"),
        ">" => (RELATIONS, "_>_"),
        "==" => (RELATIONS, op::EQUALS),
        "!=" => (RELATIONS, op::NOT_EQUALS),
        "in" => (RELATIONS, op::IN),
        "+" => (3, op::ADD),
        "-" => (3, "_-_"),
        "*" => (4, "_*_"),
        "/" => (4, "_/_"),
        "%" => (4, "_%_"),
        _ => return None,
    })
}
