// How long the page takes to show the state of 16 workers and 200 requests, some of which change each time, in
// milliseconds; the layout is included.
const { take, show } = await import("/assets/app.js");
const took = [];
for (let round = 0; round < 20; round += 1) {
    const { status, steps } = arguments[0];
    status.requests.generated_tokens += 100;
    status.steps.count += 10;
    status.rates.generated_tokens_per_s = 100 + round;
    for (const stage of status.stages) { stage.decode_us_p50 += 10; stage.busy = Math.random(); }
    for (const worker of status.workers) for (const link of worker.links) link.rtt_us += 1;
    for (const request of status.active) { request.generated_tokens += 1; request.age_s += 0.25; }
    const start = performance.now();
    take("status", status);
    take("steps", steps.map((step) => ({ ...step, step: step.step + round * 40, sent_ms: step.sent_ms + round * 400 })));
    show();
    document.documentElement.getBoundingClientRect();
    took.push(performance.now() - start);
}
return { took, cards: document.querySelectorAll("#shards .card").length, bars: document.querySelectorAll("#timeline rect.decode").length };
