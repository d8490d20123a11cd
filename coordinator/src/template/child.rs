//! The process that renders: it takes one request after the other from its standard input until that ends, and with it
//! the coordinator.

use std::io::{self, Write as _};

use brigade_shard::template::{ChatTemplate, TemplateError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

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
        return Ok(Reply::Text(template.render(&messages, true, &variables)?));
    }
    let without = template.render(&messages, true, &variables);
    variables.insert("tools".to_owned(), Value::Array(tools));
    let with = template.render(&messages, true, &variables)?;
    Ok(if without.is_ok_and(|without| without == with) { Reply::NoTools } else { Reply::Text(with) })
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
