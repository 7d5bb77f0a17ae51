/* Operator work: pick.lua finds messages and batches by what stands in heads, here the rest of the
 * selector is applied to the decoded records and the records to be are made, apply.lua writes them
 * where nothing has changed meanwhile.
 *
 * A cursor is "source shard:place": which set of messages is walked (pick.lua), in which shard, and
 * where in it. */
#include "queue/work.h"

#include "gateway/base/failpoint.h"
#include "queue/queue_internal.h"

#include <stdio.h>

enum {
    PICK_MESSAGES = 100,
    PICK_BATCHES = 200,
    PLACE_MAX = 96,
    SKIPS_MAX = 100,
    STEPS_MAX = 2 * PICK_BATCHES + PICK_MESSAGES,
    RECORD_BYTES_MAX = 256 * 1024,
    REASON_MAX = 300,
    FRAME_BYTES = 64, /* more than a stored body has around it */
};
#define PAGE_BYTES_MAX ((size_t)64 << 20)
#define ORDER_BYTES_MAX ((size_t)1 << 20)
#define LIFETIME_DEFAULT_MS (INT64_C(24) * 3600 * 1000)
#define DEAD_STATES (QUEUE_SELECT_FAILED | QUEUE_SELECT_EXPIRED | QUEUE_SELECT_UNKNOWN)
#define OPEN_STATES (QUEUE_SELECT_READY | QUEUE_SELECT_DELAYED | QUEUE_SELECT_HELD)

/* A step given to apply.lua, to make sense of its answer. */
struct step {
    struct span id;
    int64_t batch;   /* -1: the message */
    int64_t batches; /* that it changes */
};

struct work {
    struct queue *queue;
    queue_work_cb cb;
    void *ctx;
    struct queue_order order;
    struct arena arena; /* the order's texts and the skips */
    char sources[4];    /* still to walk, the present one first */
    uint32_t shard;
    char place[PLACE_MAX]; /* in the shard; "": its beginning */
    int64_t left;          /* messages to look at */
    int64_t now_ms;
    struct arena page; /* what is decoded of a reply, the names of the steps */
    struct step steps[STEPS_MAX];
    size_t step_count;
    struct redis_args args; /* for apply.lua */
    struct queue_skip skips[SKIPS_MAX];
    struct queue_worked sums;
};

const char *queue_verb_name(enum queue_verb verb)
{
    switch (verb) {
    case QUEUE_HOLD:
        return "hold";
    case QUEUE_RELEASE:
        return "release";
    case QUEUE_RETRY:
        return "retry";
    case QUEUE_CANCEL:
        return "cancel";
    case QUEUE_MOVE:
        return "move";
    case QUEUE_PURGE:
        return "purge";
    case QUEUE_REPLAY:
        return "replay";
    }
    UNREACHABLE();
}

/* What the selector says. */

/* The letters of the states a verb is for (queue_record.c). */
static const char *verb_letters(enum queue_verb verb)
{
    switch (verb) {
    case QUEUE_HOLD:
        return "RW";
    case QUEUE_RELEASE:
        return "H";
    case QUEUE_RETRY:
        return "WH";
    case QUEUE_CANCEL:
        return "REWH";
    case QUEUE_MOVE:
        return "RWH";
    case QUEUE_PURGE:
        return "REWHD";
    case QUEUE_REPLAY:
        return "D";
    }
    UNREACHABLE();
}

static uint32_t letter_states(char letter)
{
    switch (letter) {
    case 'W':
        return QUEUE_SELECT_DELAYED;
    case 'H':
        return QUEUE_SELECT_HELD;
    case 'D':
        return DEAD_STATES | QUEUE_SELECT_FINISHED;
    default:
        return QUEUE_SELECT_READY;
    }
}

/* Of those, the ones the selector wants, and that the source can hold. */
static void wanted_letters(const struct work *work, char out[8])
{
    uint32_t states = work->order.selector.states;
    char source = work->sources[0];
    size_t count = 0;
    for (const char *at = verb_letters(work->order.verb); *at != '\0'; at++) {
        bool here = source == 'i' || (*at == 'D') == (source != 'x');
        if (here && (states == 0 || (states & letter_states(*at)) != 0)) {
            out[count++] = *at;
        }
    }
    out[count] = '\0';
}

static void choose_sources(struct work *work)
{
    const struct queue_order *order = &work->order;
    uint32_t states = order->selector.states;
    const char *sources = "x";
    if (order->id_count > 0) {
        sources = "i";
    } else if (order->verb == QUEUE_REPLAY) {
        sources = "z";
    } else if (order->verb == QUEUE_PURGE) {
        bool open = states == 0 || (states & OPEN_STATES) != 0;
        bool finished = states == 0 || (states & QUEUE_SELECT_FINISHED) != 0;
        bool dead = (states & DEAD_STATES) != 0;
        sources = open ? (finished ? "xf" : (dead ? "xz" : "x")) : (finished ? "f" : "z");
    }
    (void)snprintf(work->sources, sizeof(work->sources), "%s", sources);
}

static bool address_matches(struct span pattern, struct span address)
{
    if (pattern.len > 1 && pattern.data[0] == '*' && pattern.data[1] == '@') {
        return span_iends(address, span_make(pattern.data + 1, pattern.len - 1));
    }
    return span_ieq(address, pattern);
}

static bool message_matches(const struct queue_selector *selector, const struct message *message)
{
    if (selector->sender.len > 0 && !address_matches(selector->sender, message->header_from) &&
        !address_matches(selector->sender, message->reverse_path)) {
        return false;
    }
    if (selector->accepted_before_ms > 0 && message->accepted_ms >= selector->accepted_before_ms) {
        return false;
    }
    struct span tags = message->tags;
    bool tagged = selector->tag.len == 0;
    while (tags.len > 0 && !tagged) {
        tagged = span_eq(span_cut(&tags, '\n'), selector->tag);
    }
    return tagged;
}

static uint32_t select_of(enum recipient_state state)
{
    switch (state) {
    case RECIPIENT_FAILED:
        return QUEUE_SELECT_FAILED;
    case RECIPIENT_EXPIRED:
        return QUEUE_SELECT_EXPIRED;
    case RECIPIENT_UNKNOWN:
        return QUEUE_SELECT_UNKNOWN;
    case RECIPIENT_QUEUED:
    case RECIPIENT_DELIVERED:
    case RECIPIENT_SUPPRESSED:
    case RECIPIENT_CANCELLED:
        return 0;
    }
    UNREACHABLE();
}

/* Whether the verb is for this recipient of a batch in that state. */
static bool is_concerned(const struct queue_order *order, char letter,
                         const struct recipient *recipient)
{
    struct span domain = order->selector.domain;
    struct span rest = recipient->address;
    (void)span_cut(&rest, '@');
    if (domain.len > 0 && !span_ieq(rest, domain)) {
        return false;
    }
    uint32_t dead = select_of(recipient->state);
    if (letter != 'D') {
        return recipient->state == RECIPIENT_QUEUED ||
               (letter == 'H' && recipient->state == RECIPIENT_UNKNOWN);
    }
    uint32_t states = order->selector.states & (DEAD_STATES | QUEUE_SELECT_FINISHED);
    if (order->verb == QUEUE_PURGE && (states == 0 || (states & QUEUE_SELECT_FINISHED) != 0)) {
        return true;
    }
    return dead != 0 && (states == 0 || (states & dead) != 0);
}

/* Recipients the verb is for, added to `counts`. */
static size_t count_concerned(const struct queue_order *order, char letter,
                              const struct batch *batch, int64_t counts[RECIPIENT_STATE_COUNT])
{
    size_t total = 0;
    for (size_t i = 0; i < batch->recipient_count; i++) {
        if (is_concerned(order, letter, &batch->recipients[i])) {
            counts[batch->recipients[i].state]++;
            total++;
        }
    }
    return total;
}

/* What becomes of a batch. */

struct change {
    struct batch_head head;
    struct batch batch;
    int64_t counts[RECIPIENT_STATE_COUNT]; /* recipients more or fewer in each state */
    char pair[QUEUE_NAMES_MAX + 2];
};

static void set_state(struct change *change, struct recipient *recipient,
                      enum recipient_state state, int64_t now_ms)
{
    change->counts[recipient->state]--;
    change->counts[state]++;
    recipient->state = state;
    recipient->at_ms = now_ms;
}

/* It may be sent, whatever is known of earlier tries: at once, or DELAYED as it was before it was
 * held, while it is not due yet. */
static void set_free(struct change *change, int64_t now_ms, bool at_once)
{
    bool waits = !at_once && change->head.due_ms > now_ms;
    change->head.state = waits ? 'W' : 'R';
    change->head.due_ms = waits ? change->head.due_ms : 0;
    change->head.reason = (struct span){0};
    if (change->head.starts >= 3) { /* poison, set free by hand: it has three lives again */
        change->head.starts = 0;
        change->batch.flags |= BATCH_MAYBE_SENT;
    }
    for (size_t i = 0; i < change->batch.recipient_count; i++) {
        if (change->batch.recipients[i].state == RECIPIENT_UNKNOWN) {
            set_state(change, &change->batch.recipients[i], RECIPIENT_QUEUED, now_ms);
        }
    }
}

static void cancel(const struct work *work, struct change *change)
{
    char letter = change->head.state;
    for (size_t i = 0; i < change->batch.recipient_count; i++) {
        struct recipient *recipient = &change->batch.recipients[i];
        if (recipient->state == RECIPIENT_QUEUED && is_concerned(&work->order, letter, recipient)) {
            set_state(change, recipient, RECIPIENT_CANCELLED, work->now_ms);
        }
    }
    if (batch_open_count(&change->batch) == 0) {
        change->head.state = 'D';
        change->head.reason = work->order.reason;
    }
}

/* As a batch nobody has tried, except that what may have been sent keeps its name for the service.
 */
static void replay(const struct work *work, struct change *change)
{
    bool maybe_sent = false;
    for (size_t i = 0; i < change->batch.recipient_count; i++) {
        struct recipient *recipient = &change->batch.recipients[i];
        if (is_concerned(&work->order, 'D', recipient)) {
            maybe_sent = maybe_sent || recipient->state == RECIPIENT_UNKNOWN;
            set_state(change, recipient, RECIPIENT_QUEUED, work->now_ms);
        }
    }
    change->head.state = 'R';
    change->head.due_ms = 0;
    change->head.reason = (struct span){0};
    change->batch.attempts = 0;
    change->batch.epoch += maybe_sent ? 0 : 1;
    change->batch.flags = maybe_sent ? BATCH_MAYBE_SENT : 0;
}

/* NULL, or why the batch cannot go there. */
static const char *move(const struct work *work, struct change *change, uint64_t body_bytes)
{
    const struct queue_order *order = &work->order;
    if (span_eq(change->batch.backend, order->to)) {
        return "It goes there already.";
    }
    if (order->to_recipients_max > 0 &&
        batch_open_count(&change->batch) > order->to_recipients_max) {
        return "It has more recipients than that backend takes at once.";
    }
    if (order->to_bytes_max > 0 && body_bytes > order->to_bytes_max) {
        return "It is larger than that backend takes.";
    }
    if (queue_pair_name(change->batch.lane, order->to, change->pair) != 0) {
        return "The names are too long.";
    }
    change->head.pair = span_of(change->pair);
    change->batch.backend = order->to;
    change->batch.account = (struct span){0};
    return NULL;
}

static const char *make_change(const struct work *work, struct change *change, uint64_t body_bytes)
{
    switch (work->order.verb) {
    case QUEUE_HOLD:
        change->head.state = 'H';
        change->head.reason = work->order.reason;
        return NULL;
    case QUEUE_RETRY:
        change->batch.attempts = work->order.reset ? 0 : change->batch.attempts;
        set_free(change, work->now_ms, true);
        return NULL;
    case QUEUE_RELEASE:
        set_free(change, work->now_ms, false);
        return NULL;
    case QUEUE_CANCEL:
    case QUEUE_PURGE:
        cancel(work, change);
        return NULL;
    case QUEUE_MOVE:
        return move(work, change, body_bytes);
    case QUEUE_REPLAY:
        replay(work, change);
        return NULL;
    }
    UNREACHABLE();
}

static bool has_dead(const struct batch *batch)
{
    bool dead = false;
    for (size_t i = 0; i < batch->recipient_count; i++) {
        dead = dead || select_of(batch->recipients[i].state) != 0;
    }
    return dead;
}

/* Steps for apply.lua. */

static void skip(struct work *work, struct span id, int64_t batch, const char *reason)
{
    work->sums.skipped++;
    if (work->sums.skip_count < SKIPS_MAX) {
        struct queue_skip *added = &work->skips[work->sums.skip_count];
        *added = (struct queue_skip){
            .id = arena_dup(&work->arena, id), .batch = batch, .reason = reason};
        work->sums.skip_count += added->id.data != NULL ? 1 : 0;
    }
}

static void add_step(struct work *work, const char *what, struct span name, struct step step)
{
    ASSERT(work->step_count < STEPS_MAX);
    step.id = arena_dup(&work->page, step.id);
    work->steps[work->step_count++] = step;
    redis_args_text(&work->args, what);
    redis_args_add(&work->args, name);
}

static void add_empty(struct work *work, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        redis_args_text(&work->args, "");
    }
}

static void add_counts(struct work *work, const struct change *change)
{
    char text[RECIPIENT_STATE_COUNT * 16] = "";
    size_t len = 0;
    for (size_t state = 1; state < RECIPIENT_STATE_COUNT; state++) {
        if (change->counts[state] != 0) {
            len += (size_t)snprintf(text + len, sizeof(text) - len, "%zu=%lld,", state,
                                    (long long)change->counts[state]);
        }
    }
    redis_args_text(&work->args, text);
}

static int64_t lifetime_of(const struct queue_order *order, struct span lane)
{
    for (size_t i = 0; i < order->lifetime_count; i++) {
        if (span_eq(span_of(order->lifetimes[i].lane), lane)) {
            return order->lifetimes[i].expires_ms;
        }
    }
    return LIFETIME_DEFAULT_MS;
}

/* The message's record with a new expiry: its two head lines as they are, the rest anew. */
static void add_message(struct work *work, struct span stored, const struct message *message)
{
    struct message renewed = *message;
    struct span rest = stored;
    (void)span_cut(&rest, '\n');
    (void)span_cut(&rest, '\n');
    renewed.expires_ms = work->now_ms + lifetime_of(&work->order, message->lane);
    struct buf record;
    buf_init(&record, RECORD_BYTES_MAX);
    int status = buf_append(&record, span_make(stored.data, stored.len - rest.len));
    status = status != 0 ? status : message_encode(&renewed, &record);
    work->args.status = work->args.status != 0 ? work->args.status : status;
    redis_args_add(&work->args, buf_span(&record));
    redis_args_number(&work->args, renewed.expires_ms);
    buf_release(&record);
}

/* One batch of a picked message. */
struct picked {
    struct span id;
    struct span stored; /* the message's record */
    struct message message;
    uint64_t body_bytes;
    size_t matched;   /* its batches that the verb is for */
    bool all_done;    /* no matched batch is open */
    int64_t finished; /* matched batches that are done */
};

static void change_batch(struct work *work, const struct picked *picked, struct span entry,
                         struct span stored, struct change *change)
{
    bool replayed = change->head.state == 'D';
    struct step step = {.id = picked->id, .batch = change->batch.number, .batches = 1};
    const char *why = make_change(work, change, picked->body_bytes);
    if (why != NULL) {
        skip(work, picked->id, change->batch.number, why);
        return;
    }
    if (work->order.dry_run) {
        return;
    }
    if (work->order.verb == QUEUE_MOVE) {
        queue_pair_register(work->queue, work->shard, change->head.pair);
    }
    bool dead = change->head.state == 'D' && has_dead(&change->batch);
    struct buf record;
    buf_init(&record, RECORD_BYTES_MAX);
    int status = queue_batch_store(&change->head, &change->batch, &record);
    work->args.status = work->args.status != 0 ? work->args.status : status;
    add_step(work, dead ? "X" : "T", entry, step);
    redis_args_add(&work->args, stored);
    redis_args_add(&work->args, buf_span(&record));
    add_counts(work, change);
    if (replayed) {
        add_message(work, picked->stored, &picked->message);
    } else {
        add_empty(work, 2);
    }
    buf_release(&record);
}

static void take_batch(struct work *work, struct picked *picked, struct span entry,
                       struct span stored, bool leased)
{
    struct change change = {0};
    if (queue_batch_read(stored, &work->page, &change.head, &change.batch) != 0) {
        skip(work, picked->id, -1, "A record of it cannot be read.");
        return;
    }
    char letter = change.head.state;
    if (count_concerned(&work->order, letter, &change.batch, work->sums.recipients) == 0) {
        return;
    }
    picked->matched++;
    work->sums.batches++;
    if (leased) {
        picked->all_done = false;
        work->sums.busy++;
    } else if (letter == 'D' && work->order.verb == QUEUE_PURGE) {
        picked->finished++;
    } else {
        picked->all_done = false;
        change_batch(work, picked, entry, stored, &change);
    }
}

/* Purge looks at the message as a whole once its batches are done. When the finished messages are
 * walked later ("xf"), one that has ended here goes at once, or it would be met and counted again.
 */
static void finish_purge(struct work *work, const struct picked *picked)
{
    if (work->order.dry_run || work->order.verb != QUEUE_PURGE || picked->matched == 0) {
        return;
    }
    struct step step = {.id = picked->id, .batch = -1, .batches = picked->finished};
    if (picked->all_done) {
        add_step(work, "P", picked->id, step);
    } else {
        step.batches = 0;
        add_step(work, work->sources[1] == 'f' ? "F" : "B", picked->id, step);
    }
    add_empty(work, 5);
}

/* At least how long the body is: it may be packed. */
static uint64_t body_bytes_of(struct span stored, uint32_t batch_count)
{
    uint64_t charge = queue_message_charge(stored);
    uint64_t rest = queue_charge(FRAME_BYTES, batch_count);
    return charge > rest ? charge - rest : 0;
}

static const char *letter_name(char letter)
{
    switch (letter) {
    case 'R':
        return "ready";
    case 'E':
        return "past its expiry";
    case 'W':
        return "delayed";
    case 'H':
        return "held";
    case 'D':
        return "finished";
    case 'C':
        return "being sent";
    default:
        return "without a record";
    }
}

/* Why nothing of a message that an id named was meant; `letters`: the states of its batches. */
static const char *why_not(struct work *work, struct span letters)
{
    const struct queue_selector *selector = &work->order.selector;
    bool selects = selector->lane.len + selector->backend.len + selector->sender.len +
                           selector->domain.len + selector->tag.len >
                       0 ||
                   selector->states != 0 || selector->accepted_before_ms != 0;
    if (letters.len == 0) {
        return "It has no such batch.";
    }
    struct buf text;
    buf_init(&text, REASON_MAX);
    int status = buf_printf(&text, "It is ");
    for (size_t i = 0; i < letters.len && status == 0; i++) {
        status = buf_printf(&text, "%s%s%s", i > 0 ? ", " : "", letters.len > 1 ? "partly " : "",
                            letter_name(letters.data[i]));
    }
    if (status == 0 && selects) {
        status = buf_printf(&text, ", or not what the selector says.");
    } else if (status == 0) {
        status = buf_printf(&text, ": there is nothing to %s.", queue_verb_name(work->order.verb));
    }
    status = status != 0 ? status : buf_append(&text, span_make("", 1));
    struct span kept = status == 0 ? arena_dup(&work->arena, buf_span(&text)) : (struct span){0};
    buf_release(&text);
    return kept.data != NULL ? kept.data : "It is in no state that this is for.";
}

/* The states of a message in pick.lua's reply: of a batch it took, or of all when it took none. */
static struct span picked_letters(const struct redis_value *item)
{
    struct span letters = redis_item(item, item->count > 3 ? 3 : 2)->text;
    letters.len = item->count > 3 && letters.len > 1 ? 1 : letters.len;
    return letters;
}

/* A picked message: id, stored message, then entry, stored batch, lease for each batch. */
static void take_message(struct work *work, const struct redis_value *item)
{
    bool by_id = work->sources[0] == 'i';
    struct span client = work->order.selector.client;
    struct picked picked = {.id = redis_item(item, 0)->text, .all_done = true};
    uint32_t batch_count = 0;
    picked.stored = redis_item(item, 1)->text;
    if (picked.stored.len == 0 ||
        queue_message_read(picked.stored, &picked.message, &batch_count) != 0) {
        skip(work, picked.id, -1,
             picked.stored.len == 0 ? "There is no such message." : "Its record cannot be read.");
        return;
    }
    if (client.len > 0 && !span_eq(client, picked.message.client)) {
        if (by_id) {
            skip(work, picked.id, -1, "There is no such message.");
        }
        return;
    }
    work->sums.found += by_id ? 1 : 0;
    picked.body_bytes = body_bytes_of(picked.stored, batch_count);
    int64_t skipped = work->sums.skipped;
    if (message_matches(&work->order.selector, &picked.message)) {
        for (size_t i = 2; i + 2 < item->count; i += 3) {
            take_batch(work, &picked, redis_item(item, i)->text, redis_item(item, i + 1)->text,
                       redis_item(item, i + 2)->text.len > 0);
        }
    }
    work->sums.messages += picked.matched > 0 ? 1 : 0;
    if (by_id && picked.matched == 0 && skipped == work->sums.skipped) {
        skip(work, picked.id, -1, why_not(work, picked_letters(item)));
    }
    finish_purge(work, &picked);
}

/* The walk. */

static int pick(struct work *work);

static void work_finish(struct work *work, int status)
{
    char cursor[PLACE_MAX + 16] = "";
    if (work->sources[0] != '\0') {
        (void)snprintf(cursor, sizeof(cursor), "%c%u:%s", work->sources[0], work->shard,
                       work->place);
    }
    work->sums.skips = work->skips;
    work->sums.next_cursor = span_of(cursor);
    work->cb(work->ctx, status, status == 0 ? &work->sums : NULL);
    arena_release(&work->arena);
    mem_free(work);
}

static bool shard_has_ids(const struct work *work, uint32_t shard)
{
    for (size_t i = 0; i < work->order.id_count; i++) {
        struct span id = work->order.ids[i];
        if (queue_shard_of_id(work->queue, span_cut(&id, '/')) == shard) {
            return true;
        }
    }
    return false;
}

/* To the next shard that can hold something, or the next source's first. */
static void next_shard(struct work *work)
{
    work->place[0] = '\0';
    do {
        work->shard++;
        if (work->shard == work->queue->conf->shards) {
            work->shard = 0;
            memmove(work->sources, work->sources + 1, sizeof(work->sources) - 1);
        }
    } while (work->sources[0] == 'i' && !shard_has_ids(work, work->shard));
}

/* After a page: on with the next one, unless enough was looked at. */
static void go_on(struct work *work)
{
    if (work->place[0] == '\0') {
        next_shard(work);
    }
    if (work->sources[0] == '\0' || work->left <= 0) {
        work_finish(work, 0);
        return;
    }
    int status = work->queue->closing ? ERR_CLOSED : pick(work);
    if (status != 0) {
        work_finish(work, status);
    }
}

static void page_release(struct work *work)
{
    redis_args_release(&work->args);
    arena_release(&work->page);
}

static void take_answer(struct work *work, const struct step *step, int64_t answer)
{
    enum { DIFFERENT, DONE, LEASED, NO_BODY };
    if (answer == DONE) {
        work->sums.changed += step->batches;
    } else if (answer == LEASED) {
        work->sums.busy++;
    } else if (answer == NO_BODY) {
        skip(work, step->id, step->batch, "Its body is no longer kept.");
    } else if (step->batches > 0) {
        skip(work, step->id, step->batch, "It changed at this moment: say it again.");
    }
}

static void on_applied(void *ctx, int status, const struct redis_value *value)
{
    struct work *work = ctx;
    FAILPOINT("work-applied");
    for (size_t i = 0; status == 0 && i < work->step_count; i++) {
        take_answer(work, &work->steps[i], redis_integer(redis_item(value, i)));
    }
    page_release(work);
    if (status != 0) {
        work_finish(work, status == ERR_PROTO ? ERR_UNAVAILABLE : status);
    } else {
        go_on(work);
    }
}

static void on_picked(void *ctx, int status, const struct redis_value *value)
{
    struct work *work = ctx;
    if (status != 0) {
        work_finish(work, status == ERR_PROTO ? ERR_UNAVAILABLE : status);
        return;
    }
    arena_init(&work->page, PAGE_BYTES_MAX);
    redis_args_init(&work->args);
    work->step_count = 0;
    struct span place = redis_item(value, 0)->text;
    (void)snprintf(work->place, sizeof(work->place), "%.*s", SPAN_FMT(place));
    work->left -= redis_integer(redis_item(value, 1)) + 1; /* an empty page is work, too */
    for (size_t i = 2; i < value->count; i++) {
        take_message(work, redis_item(value, i));
    }
    if (work->step_count == 0) {
        page_release(work);
        go_on(work);
        return;
    }
    struct redis_args head;
    queue_call_begin(work->shard, &head);
    struct redis_args args = work->args;
    redis_args_init(&work->args);
    FAILPOINT("work-before-write");
    status = nodes_eval(work->queue->nodes, work->shard, SCRIPT_APPLY, 1, &head, &args, on_applied,
                        work);
    if (status != 0) {
        page_release(work);
        work_finish(work, status == ERR_NOMEM || status == ERR_LIMIT ? ERR_UNAVAILABLE : status);
    }
}

static int pick(struct work *work)
{
    const struct queue_selector *selector = &work->order.selector;
    char letters[8];
    char source[2] = {work->sources[0], '\0'};
    struct redis_args head;
    wanted_letters(work, letters);
    queue_call_begin(work->shard, &head);
    redis_args_text(&head, source);
    redis_args_text(&head, work->place);
    redis_args_number(&head, work->left < PICK_MESSAGES ? work->left : PICK_MESSAGES);
    redis_args_number(&head, PICK_BATCHES);
    redis_args_text(&head, letters);
    redis_args_add(&head, selector->lane);
    redis_args_add(&head, selector->backend);
    redis_args_add(&head, selector->client);
    for (size_t i = 0; source[0] == 'i' && i < work->order.id_count; i++) {
        struct span id = work->order.ids[i];
        if (queue_shard_of_id(work->queue, span_cut(&id, '/')) == work->shard) {
            redis_args_add(&head, work->order.ids[i]);
        }
    }
    return nodes_eval(work->queue->nodes, work->shard, SCRIPT_PICK, 1, &head, NULL, on_picked,
                      work);
}

/* Beginning. */

static int read_cursor(struct work *work, struct span cursor)
{
    if (cursor.len == 0) {
        if (work->sources[0] == 'i' && !shard_has_ids(work, 0)) {
            next_shard(work);
        }
        return 0;
    }
    while (work->sources[0] != '\0' && work->sources[0] != cursor.data[0]) {
        memmove(work->sources, work->sources + 1, sizeof(work->sources) - 1);
    }
    struct span place = span_make(cursor.data + 1, cursor.len - 1);
    uint64_t shard = 0;
    if (work->sources[0] == '\0' ||
        span_to_u64(span_cut(&place, ':'), work->queue->conf->shards - 1, &shard) != 0 ||
        place.len >= PLACE_MAX) {
        return ERR_INVAL;
    }
    work->shard = (uint32_t)shard;
    (void)snprintf(work->place, sizeof(work->place), "%.*s", SPAN_FMT(place));
    return 0;
}

static int copy_text(struct work *work, struct span *text, size_t max)
{
    if (text->len > max) {
        return ERR_INVAL;
    }
    if (text->len == 0) {
        return 0;
    }
    *text = arena_dup(&work->arena, *text);
    return text->data != NULL ? 0 : ERR_NOMEM;
}

static int copy_lifetimes(struct work *work, const struct queue_order *order)
{
    struct queue_lifetime *copy = arena_alloc(&work->arena,
                                              (order->lifetime_count + 1) * sizeof(*copy));
    for (size_t i = 0; copy != NULL && i < order->lifetime_count; i++) {
        copy[i] = order->lifetimes[i];
        size_t len = strlen(copy[i].lane) + 1;
        char *name = arena_alloc(&work->arena, len);
        if (name == NULL) {
            return ERR_NOMEM;
        }
        memcpy(name, copy[i].lane, len);
        copy[i].lane = name;
    }
    work->order.lifetimes = copy;
    return copy != NULL ? 0 : ERR_NOMEM;
}

static int copy_order(struct work *work, const struct queue_order *order)
{
    work->order = *order;
    struct queue_selector *selector = &work->order.selector;
    struct span *texts[] = {&selector->lane,   &selector->backend, &selector->client,
                            &selector->sender, &selector->domain,  &selector->tag,
                            &work->order.to};
    int status = order->id_count <= QUEUE_WORK_IDS_MAX ? 0 : ERR_INVAL;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]) && status == 0; i++) {
        status = copy_text(work, texts[i], QUEUE_NAMES_MAX);
    }
    if (status == 0) {
        struct span *reason = &work->order.reason;
        reason->len = reason->len < REASON_MAX ? reason->len : REASON_MAX;
        status = copy_text(work, reason, REASON_MAX);
    }
    struct span *ids = arena_alloc(&work->arena, (order->id_count + 1) * sizeof(*ids));
    status = status == 0 && ids == NULL ? ERR_NOMEM : status;
    for (size_t i = 0; i < order->id_count && status == 0; i++) {
        ids[i] = order->ids[i];
        status = ids[i].len == 0 ? ERR_INVAL : copy_text(work, &ids[i], QUEUE_ENTRY_MAX);
    }
    work->order.ids = ids;
    return status != 0 ? status : copy_lifetimes(work, order);
}

int queue_work(struct queue *queue, const struct queue_order *order, queue_work_cb cb, void *ctx)
{
    if (queue->closing || !queue_is_up(queue)) {
        return queue->closing ? ERR_CLOSED : ERR_UNAVAILABLE;
    }
    if (order->limit == 0 || order->limit > QUEUE_WORK_LIMIT_MAX ||
        (order->verb == QUEUE_MOVE && order->to.len == 0)) {
        return ERR_INVAL;
    }
    queue_flush_now(queue);
    struct work *work = mem_zero(sizeof(*work));
    work->queue = queue;
    work->cb = cb;
    work->ctx = ctx;
    work->left = (int64_t)order->limit;
    work->now_ms = queue_wall_ms(queue);
    arena_init(&work->arena, ORDER_BYTES_MAX);
    int status = copy_order(work, order);
    if (status == 0) {
        choose_sources(work);
        status = read_cursor(work, order->cursor);
    }
    if (status == 0) {
        status = pick(work);
    }
    if (status != 0) {
        arena_release(&work->arena);
        mem_free(work);
    }
    return status;
}
