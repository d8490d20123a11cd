//! The process that renders: it takes one request after the other from its standard input until that ends, and with it
//! the coordinator.

use std::io::{self, Write as _};

use brigade_shard::template::{ChatTemplate, TemplateError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};

use super::wire::{self, MAX_REQUEST_BYTES, Rendering, Reply, Request};
use super::{ADDRESS_SPACE_BYTES, CPU_SECONDS};

/// Serves requests until there are no more.
///
/// # Errors
/// Where the limits cannot be set, or the coordinator does not speak as agreed.
pub fn serve() -> io::Result<()> {
    limit(Resource::As, ADDRESS_SPACE_BYTES)?;
    // A process that ran into its limit leaves no image of its memory behind.
    limit(Resource::Core, 0)?;
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut template = None;
    while let Some(request) = wire::read(&mut input, MAX_REQUEST_BYTES)? {
        limit(Resource::Cpu, cpu_seconds_used() + CPU_SECONDS)?;
        let reply = match request {
            Request::Load(source) => match ChatTemplate::compile(&source) {
                Ok(compiled) => {
                    template = Some(compiled.with_clock(std::time::SystemTime::now));
                    Reply::Loaded
                }
                Err(error) => Reply::Refused(error.to_string()),
            },
            Request::Render(rendering) => match &template {
                Some(template) => {
                    render(template, rendering).unwrap_or_else(|error| Reply::Refused(error.to_string()))
                }
                None => Reply::Refused("no chat template was loaded".to_owned()),
            },
        };
        output.write_all(&wire::frame(&reply)?)?;
        output.flush()?;
    }
    Ok(())
}

/// The prompt. Where tools are given and the prompt is the same without them, the template knows none: what a template
/// does with its variables shows only in what it writes.
fn render(template: &ChatTemplate, rendering: Rendering) -> Result<Reply, TemplateError> {
    let Rendering { messages, tools, mut variables } = rendering;
    if tools.is_empty() {
        return Ok(Reply::Text(render_as_it_likes(template, &messages, &variables)?));
    }
    let without = render_as_it_likes(template, &messages, &variables);
    variables.insert("tools".to_owned(), Value::Array(tools));
    let with = render_as_it_likes(template, &messages, &variables)?;
    Ok(if without.is_ok_and(|without| without == with) { Reply::NoTools } else { Reply::Text(with) })
}

/// The prompt, in the first of the ways to write calls that the template neither fails on nor refuses. Templates differ in
/// what they take: some ask whether there is content, others search it as text or want it to be one; some write arguments
/// as JSON, others join them on as the text that they are in a request.
fn render_as_it_likes(
    template: &ChatTemplate,
    messages: &[Value],
    variables: &Map<String, Value>,
) -> Result<String, TemplateError> {
    let failed = match template.render(messages, true, variables) {
        Err(error @ (TemplateError::Failed { .. } | TemplateError::Refused { .. })) => error,
        rendered => return rendered,
    };
    let ways: [&[fn(&mut Value)]; 3] =
        [&[fill_content], &[write_arguments], &[fill_content, write_arguments]];
    for way in ways {
        let mut written = messages.to_vec();
        written.iter_mut().for_each(|message| way.iter().for_each(|change| change(message)));
        if written == messages {
            continue;
        }
        if let Ok(text) = template.render(&written, true, variables) {
            return Ok(text);
        }
    }
    Err(failed)
}

/// Makes content that is not there an empty text.
fn fill_content(message: &mut Value) {
    if let Some(content) = message.get_mut("content").filter(|content| content.is_null()) {
        *content = Value::from("");
    }
}

/// Makes the arguments of calls the JSON of what they are.
fn write_arguments(message: &mut Value) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments").filter(|value| value.is_object()) {
            *arguments = Value::from(arguments.to_string());
        }
    }
}

/// Lowers a limit of this process, or raises it again as far as it may.
fn limit(resource: Resource, wanted: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = Some(maximum.map_or(wanted, |maximum| wanted.min(maximum)));
    Ok(setrlimit(resource, Rlimit { current, maximum })?)
}

/// Processor time of this process so far. The limit knows whole seconds only: rounded down, since a template that has
/// begun to misbehave had better end early.
fn cpu_seconds_used() -> u64 {
    u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0)
}
