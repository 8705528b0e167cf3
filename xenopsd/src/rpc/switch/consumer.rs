//! The thread that waits for messages and hands their calls to the service.

use std::time::Instant;

use crossbeam::channel::Sender;

use super::link::{Link, LinkError};
use super::protocol::{Command, Kind, Message, MessageId, Transferred};
use super::{Admission, Answer, Shared};
use crate::api::Error;
use crate::api::value::ToValue as _;
use crate::rpc::codec::Codec;
use crate::rpc::http::BODY_MAX;
use crate::rpc::server::{Responder, Service, decode, hand_over};

pub(super) fn run<S: Service>(shared: &Shared, service: &S, answers: &Sender<Answer>) {
    let mut link = Link::new(shared, "switch");
    let mut from = None;
    loop {
        let asked = Instant::now();
        match next(shared, &mut link, &mut from) {
            Ok(messages) => {
                let mut new = false;
                for (id, message) in messages {
                    match shared.admit(&id, &message) {
                        Admission::New(serial) => {
                            new = true;
                            begin(service, id, serial, message, answers);
                        }
                        Admission::Known => {}
                        Admission::Stopping => return,
                    }
                }
                // A switch that does not wait would have this loop spin.
                if new || asked.elapsed() >= shared.limits.poll / 2 {
                    link.worked();
                } else if !link.rest() {
                    return;
                }
            }
            Err(error) => {
                if !link.failed(&error) {
                    return;
                }
            }
        }
        if shared.stopping() {
            return;
        }
    }
}

/// Waits for messages, on a new connection if there is none. A new connection is offered everything that is not
/// acknowledged: numbers the switch gave out before it was restarted may mean nothing to it.
fn next(
    shared: &Shared,
    link: &mut Link<'_>,
    from: &mut Option<String>,
) -> Result<Vec<(MessageId, Message)>, LinkError> {
    let queue = &shared.settings.queue;
    if !link.is_open() {
        *from = None;
        link.open()?;
        link.call(&Command::CreatePersistent(queue.clone()), std::time::Duration::ZERO)?;
        tracing::info!(switch = %shared.settings.path.display(), queue, "taking calls from the message switch");
    }
    let poll = shared.limits.poll;
    let command =
        Command::Transfer { from: from.clone(), timeout: poll.as_secs_f64(), queues: vec![queue.clone()] };
    let Transferred { messages, next } = Transferred::decode(&link.call(&command, poll)?)?;
    *from = Some(next);
    Ok(messages)
}

/// Hands a message's call to the service.
fn begin<S: Service>(service: &S, id: MessageId, serial: u64, message: Message, answers: &Sender<Answer>) {
    let Kind::Request(reply_to) = message.kind else {
        tracing::warn!(queue = id.queue, "dropped a response in a queue for requests");
        // Fails only when the transport has ended; so below.
        let _ = answers.send(Answer { id, serial, response: None });
        return;
    };
    let outbox = answers.clone();
    let deliver = move |body| {
        let _ = outbox.send(Answer { id, serial, response: Some((reply_to, body)) });
    };
    match make_out(message.payload.as_bytes()) {
        Ok(call) => {
            let responder = Responder::delivering(&call, Codec::Json, deliver);
            hand_over(service, call, responder);
        }
        Err(body) => deliver(body),
    }
}

fn make_out(payload: &[u8]) -> Result<crate::api::Call, Vec<u8>> {
    if payload.len() > BODY_MAX {
        let error = Error::internal(format!("the request is larger than {BODY_MAX} bytes"));
        return Err(Codec::Json.encode_reply(Err(error.to_value())));
    }
    decode(Codec::Json, payload)
}
