#include "gateway/settle.h"

/* How long a scope stays closed when the answer names no time. */
#define DEFAULT_THROTTLE_MS 10000
/* A misconfigured account is tried again after this; the batch waits with it and uses no attempt.
 */
#define CONFIG_WAIT_MS 60000
/* Keeps a throttled batch without a scope from spinning. */
#define UNSCOPED_WAIT_MS 1000

/* How much a verdict weighs when the recipients of one batch got different ones: the heaviest open
 * one decides. */
static int verdict_weight(enum verdict verdict)
{
    switch (verdict) {
    case VERDICT_DELIVERED:
        return 0;
    case VERDICT_RECIPIENT_PERMANENT:
        return 1;
    case VERDICT_MESSAGE_PERMANENT:
        return 2;
    case VERDICT_ACCOUNT_BLOCKED:
        return 3;
    case VERDICT_THROTTLED:
        return 4;
    case VERDICT_REFRESH:
    case VERDICT_CONFIG:
        return 5;
    case VERDICT_TRANSIENT:
        return 6;
    case VERDICT_UNKNOWN:
        return 7;
    }
    UNREACHABLE();
}

int64_t settle_ladder_wait(const struct lane_conf *lane, uint32_t attempts)
{
    ASSERT(lane->ladder_count > 0);
    if (attempts < lane->ladder_count) {
        return lane->ladder_ms[attempts];
    }
    return lane->last_repeats ? lane->ladder_ms[lane->ladder_count - 1] : -1;
}

static void finish_recipient(struct recipient *recipient, enum recipient_state state,
                             const struct answer *answer, int64_t now_ms)
{
    recipient->state = state;
    recipient->at_ms = now_ms;
    if (answer != NULL) {
        recipient->last_reply = span_of(answer->text);
    }
}

static size_t finish_open(struct batch *batch, enum recipient_state state, int64_t now_ms)
{
    size_t count = 0;
    for (size_t i = 0; i < batch->recipient_count; i++) {
        if (batch->recipients[i].state == RECIPIENT_QUEUED) {
            finish_recipient(&batch->recipients[i], state, NULL, now_ms);
            count++;
        }
    }
    return count;
}

/* The same for those that were part of this try. */
static size_t finish_tried(struct batch *batch, const struct settle_input *input,
                           enum recipient_state state)
{
    size_t count = 0;
    for (size_t i = 0; i < input->count; i++) {
        struct recipient *recipient = &batch->recipients[input->map[i]];
        if (recipient->state == RECIPIENT_QUEUED) {
            finish_recipient(recipient, state, NULL, input->now_ms);
            count++;
        }
    }
    return count;
}

/* Applies one answer to its recipient; open ones keep the service's words. */
static void apply_answer(struct recipient *recipient, const struct answer *answer, int64_t now_ms,
                         struct settle_result *out)
{
    switch (answer->verdict) {
    case VERDICT_DELIVERED:
        finish_recipient(recipient, RECIPIENT_DELIVERED, answer, now_ms);
        out->delivered++;
        return;
    case VERDICT_RECIPIENT_PERMANENT:
    case VERDICT_MESSAGE_PERMANENT:
        finish_recipient(recipient, RECIPIENT_FAILED, answer, now_ms);
        out->failed++;
        return;
    case VERDICT_THROTTLED:
    case VERDICT_TRANSIENT:
    case VERDICT_ACCOUNT_BLOCKED:
    case VERDICT_CONFIG:
    case VERDICT_REFRESH:
    case VERDICT_UNKNOWN:
        recipient->last_reply = span_of(answer->text);
        recipient->at_ms = now_ms;
        out->deferred++;
        return;
    }
    UNREACHABLE();
}

static void delay_until(struct settle_result *out, int64_t due_ms, int64_t expires_ms)
{
    out->settlement.next = QUEUE_NEXT_DELAY;
    out->settlement.due_ms = due_ms < expires_ms ? due_ms : expires_ms;
}

/* One more try by the ladder, or the end when the ladder has none left. */
static void climb_ladder(struct batch *batch, const struct settle_input *input,
                         struct settle_result *out)
{
    int64_t wait_ms = settle_ladder_wait(input->lane, batch->attempts);
    batch->attempts++;
    if (wait_ms < 0) {
        bool maybe_sent = (batch->flags & BATCH_MAYBE_SENT) != 0;
        size_t ended = finish_tried(batch, input,
                                    maybe_sent ? RECIPIENT_UNKNOWN : RECIPIENT_EXPIRED);
        out->deferred -= ended;
        *(maybe_sent ? &out->unknown : &out->expired) += ended;
        out->settlement.next = QUEUE_NEXT_DONE;
        return;
    }
    int64_t spread_ms = wait_ms / 10;
    int64_t jitter_ms = spread_ms > 0 ? (int64_t)(input->jitter % (uint32_t)(spread_ms + 1)) : 0;
    delay_until(out, input->now_ms + wait_ms + jitter_ms, input->expires_ms);
}

/* The answer was lost after the service could have taken the batch. */
static void decide_unknown(struct batch *batch, const struct settle_input *input,
                           struct settle_result *out)
{
    batch->flags |= BATCH_MAYBE_SENT;
    if (input->asks_when_unknown || input->lane->retry_unknown) {
        climb_ladder(batch, input, out);
        return;
    }
    size_t held = finish_tried(batch, input, RECIPIENT_UNKNOWN);
    out->deferred -= held;
    out->unknown += held;
    out->settlement.next = QUEUE_NEXT_HOLD;
    out->settlement.reason = SPAN_LIT("The service may have accepted it; the answer was lost.");
}

static void decide_throttled(const struct answer *answer, const struct settle_input *input,
                             struct settle_result *out)
{
    switch (answer->scope) {
    case SCOPE_BACKEND:
    case SCOPE_TENANT:
    case SCOPE_ACCOUNT:
        out->settlement.next = QUEUE_NEXT_READY;
        return;
    case SCOPE_NONE:
        delay_until(out, input->now_ms + (answer->wait_ms > 0 ? answer->wait_ms : UNSCOPED_WAIT_MS),
                    input->expires_ms);
        return;
    }
    UNREACHABLE();
}

/* One recipient's answer may say that the backend is closed for now while another's weighs more. */
static void note_throttle(const struct answer *answer, struct settle_result *out)
{
    bool beyond_account = answer->scope == SCOPE_BACKEND || answer->scope == SCOPE_TENANT;
    if (answer->verdict != VERDICT_THROTTLED || !beyond_account) {
        return;
    }
    int64_t wait_ms = answer->wait_ms > 0 ? answer->wait_ms : DEFAULT_THROTTLE_MS;
    out->close_gate = true;
    out->gate_wait_ms = wait_ms > out->gate_wait_ms ? wait_ms : out->gate_wait_ms;
}

/* Recipients that were not part of this try are next, as a batch that nobody has tried. */
static void go_on_with_rest(struct batch *batch, struct settle_result *out)
{
    batch->attempts = 0;
    batch->epoch++;
    batch->flags &= ~(uint32_t)BATCH_MAYBE_SENT;
    out->settlement.next = QUEUE_NEXT_READY;
}

static void decide_next(struct batch *batch, const struct settle_input *input,
                        struct settle_result *out)
{
    const struct answer *answer = &input->answers[out->worst];
    switch (answer->verdict) {
    case VERDICT_DELIVERED:
    case VERDICT_RECIPIENT_PERMANENT:
    case VERDICT_MESSAGE_PERMANENT:
        batch->attempts++;
        out->settlement.next = QUEUE_NEXT_DONE;
        return;
    case VERDICT_ACCOUNT_BLOCKED:
        out->settlement.next = QUEUE_NEXT_READY;
        return;
    case VERDICT_THROTTLED:
        decide_throttled(answer, input, out);
        return;
    case VERDICT_REFRESH:
    case VERDICT_CONFIG:
        delay_until(out, input->now_ms + (answer->wait_ms > 0 ? answer->wait_ms : CONFIG_WAIT_MS),
                    input->expires_ms);
        return;
    case VERDICT_TRANSIENT:
        /* After a lost answer the Operation-Id must stay the same, whatever a later question is
         * answered. */
        if ((batch->flags & BATCH_MAYBE_SENT) == 0) {
            batch->epoch++;
        }
        climb_ladder(batch, input, out);
        return;
    case VERDICT_UNKNOWN:
        decide_unknown(batch, input, out);
        return;
    }
    UNREACHABLE();
}

void settle_decide(struct batch *batch, const struct settle_input *input, struct settle_result *out)
{
    ASSERT(input->count > 0);
    *out = (struct settle_result){0};
    for (size_t i = 0; i < input->count; i++) {
        const struct answer *answer = &input->answers[i];
        struct recipient *recipient = &batch->recipients[input->map[i]];
        ASSERT(recipient->state == RECIPIENT_QUEUED);
        apply_answer(recipient, answer, input->now_ms, out);
        note_throttle(answer, out);
        if (answer->verdict != input->answers[0].verdict) {
            out->mixed = true;
        }
        if (verdict_weight(answer->verdict) > verdict_weight(input->answers[out->worst].verdict)) {
            out->worst = i;
        }
    }
    if (input->account[0] != '\0') {
        batch->account = span_of(input->account);
    }
    decide_next(batch, input, out);
    if (out->settlement.next == QUEUE_NEXT_DONE && batch_open_count(batch) > 0) {
        go_on_with_rest(batch, out);
    }
}

void settle_expire(struct batch *batch, int64_t now_ms, struct settle_result *out)
{
    *out = (struct settle_result){0};
    bool maybe_sent = (batch->flags & BATCH_MAYBE_SENT) != 0;
    size_t ended = finish_open(batch, maybe_sent ? RECIPIENT_UNKNOWN : RECIPIENT_EXPIRED, now_ms);
    *(maybe_sent ? &out->unknown : &out->expired) += ended;
    out->settlement.next = QUEUE_NEXT_DONE;
}

bool settle_recovered(struct batch *batch, const struct lane_conf *lane, bool asks_when_unknown,
                      int64_t now_ms, struct settle_result *out)
{
    batch->flags |= BATCH_MAYBE_SENT;
    if (asks_when_unknown || lane->retry_unknown) {
        return true;
    }
    *out = (struct settle_result){0};
    out->unknown = finish_open(batch, RECIPIENT_UNKNOWN, now_ms);
    out->settlement.next = QUEUE_NEXT_HOLD;
    out->settlement.reason = SPAN_LIT("The gateway ended while this batch was being sent.");
    return false;
}
