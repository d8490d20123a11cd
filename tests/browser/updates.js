// Shows the state of 16 workers and 200 requests again and again, of which something changes each time; the layout is
// part of it.
const { take, show } = await import("/assets/app.js");
const { status, steps } = arguments[0];
const updates = 40;
for (let round = 0; round < updates; round += 1) {
    status.requests.generated_tokens += 100;
    status.steps.count += 10;
    status.rates.generated_tokens_per_s = 100 + round;
    for (const stage of status.stages) {
        stage.decode_us_p50 += 10;
        stage.busy = (round % 10) / 10;
    }
    for (const worker of status.workers) for (const link of worker.links) link.rtt_us += 1;
    for (const request of status.active) {
        request.generated_tokens += 1;
        request.age_s += 0.25;
    }
    take("status", status);
    take("steps", steps.map((step) => ({ ...step, step: step.step + round * 40, sent_ms: step.sent_ms + round * 400 })));
    show();
    document.documentElement.getBoundingClientRect();
}
const count = (selector) => document.querySelectorAll(selector).length;
const pin = document.getElementById("pin").innerText;
return { updates, pin, cards: count("#shards .card"), requests: count("#requests tbody tr"), steps: count("#timeline path.decode") };
