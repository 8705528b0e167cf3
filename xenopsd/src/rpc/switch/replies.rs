//! The thread that sends responses and acknowledges messages.

use std::time::Duration;

use crossbeam::channel::{Receiver, select};

use super::link::{Link, LinkError};
use super::protocol::{Command, Kind, Message};
use super::{Answer, Never, Shared};
use crate::rpc::exchange::ExchangeError;
use crate::rpc::http::ReplyError;

/// How often a command may be refused on a good connection before it is given up: the first refusal may be of a
/// connection that the switch has forgotten.
const REFUSALS: u32 = 3;

pub(super) fn run(shared: &Shared, answers: &Receiver<Answer>, ended: &Receiver<Never>) {
    let mut link = Link::new(shared, "switch-replies");
    loop {
        let answer = select! {
            recv(answers) -> answer => answer,
            recv(ended) -> _ => return,
        };
        let Ok(Answer { id, serial, response }) = answer else { return };
        if let Some((queue, body)) = response {
            let message = Message { payload: body.into(), kind: Kind::Response(id.clone()) };
            let command = Command::Send(queue, message);
            if !insist(&mut link, &command, || shared.awaited(&id, serial)) {
                return;
            }
        }
        if !insist(&mut link, &Command::Ack(id.clone()), || shared.awaited(&id, serial)) {
            return;
        }
        shared.done(&id, serial);
    }
}

/// Sends a command until the switch has taken it, has refused it too often, or it is not wanted any more. False when
/// the transport is ending.
fn insist(link: &mut Link<'_>, command: &Command, wanted: impl Fn() -> bool) -> bool {
    let mut refusals = 0;
    while wanted() {
        let sent = if link.is_open() { Ok(()) } else { link.open() };
        match sent.and_then(|()| link.call(command, Duration::ZERO)) {
            Ok(_) => {
                link.worked();
                return true;
            }
            Err(error) => {
                if let LinkError::Exchange(ExchangeError::Reply(ReplyError::Status(_))) = &error {
                    refusals += 1;
                }
                if refusals >= REFUSALS {
                    tracing::error!(%error, "the message switch refuses a response or its acknowledgement; given up");
                    return true;
                }
                if !link.failed(&error) {
                    return false;
                }
            }
        }
    }
    true
}
