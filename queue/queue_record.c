/* Heads of stored records: the part the Lua scripts read, in plain text.
 *
 *   batch:    S s eeeeee dddddddddddddd ' ' lane|backend|sender LF reason LF stored batch
 *             | | |      due_ms (14 digits)
 *             | | epoch (6 digits)
 *             | how often in a row a claim ended in STARTED
 *             state letter
 *   message:  batch count [*KiB of a large body] ' ' charge LF client|lane LF stored message
 *
 * The digits have fixed places so that the sweeper can change them with SETRANGE. */
#include "queue/queue_internal.h"

#include "gateway/base/codec.h"

#include <assert.h>
#include <stdio.h>

enum {
    HEAD_FIXED = 23, /* through the space before the route */
    EPOCH_AT = 2,
    EPOCH_DIGITS = 6,
    DUE_AT = 8,
    DUE_DIGITS = 14,
    EPOCH_WRAP = 1000000,
    CHARGE_MESSAGE =
        1024, /* what a message costs in Redis beyond its body, measured and rounded up */
    CHARGE_BATCH = 512,
};

static void large_suffix(size_t body_len, char out[24])
{
    out[0] = '\0';
    if (body_len > QUEUE_LARGE_BODY) {
        (void)snprintf(out, 24, "*%zu", (body_len + 1023) / 1024);
    }
}

static_assert(MESSAGE_ID_MAX + 1 + CODEC_DECIMAL_MAX + 24 <= QUEUE_ENTRY_MAX, "an entry fits");

void queue_entry(struct span id, uint32_t number, size_t body_len, char out[QUEUE_ENTRY_MAX])
{
    char suffix[24];
    char digits[CODEC_DECIMAL_MAX];
    large_suffix(body_len, suffix);
    struct span count = codec_decimal(number, digits);
    size_t suffix_len = strlen(suffix);
    /* A longer one can only come from a damaged store; cut, it names nothing. */
    id.len = id.len < MESSAGE_ID_MAX ? id.len : MESSAGE_ID_MAX;
    memcpy(out, id.data, id.len);
    out[id.len] = '/';
    memcpy(out + id.len + 1, count.data, count.len);
    memcpy(out + id.len + 1 + count.len, suffix, suffix_len + 1);
}

static bool has_byte(struct span text, char byte)
{
    return span_find(text, byte) < text.len;
}

int queue_names_check(struct span lane, struct span backend, struct span client)
{
    bool bad = has_byte(lane, '|') || has_byte(backend, '|') || has_byte(lane, '\n') ||
               has_byte(backend, '\n') || has_byte(client, '\n');
    return bad || lane.len + backend.len + client.len > QUEUE_NAMES_MAX ? ERR_INVAL : 0;
}

int queue_pair_name(struct span lane, struct span backend, char out[QUEUE_NAMES_MAX + 2])
{
    int status = queue_names_check(lane, backend, (struct span){0});
    if (status != 0) {
        return status;
    }
    if (lane.len > 0) {
        memcpy(out, lane.data, lane.len);
    }
    out[lane.len] = '|';
    if (backend.len > 0) {
        memcpy(out + lane.len + 1, backend.data, backend.len);
    }
    out[lane.len + 1 + backend.len] = '\0';
    return 0;
}

struct span queue_sender(const struct message *message, char out[QUEUE_SENDER_MAX])
{
    if ((message->flags & MESSAGE_BY_HOST) == 0 || message->client.len > QUEUE_NAMES_MAX) {
        return message->client;
    }
    struct span rest = message->source;
    uint64_t part = codec_fnv1a(span_cut(&rest, ' ')) % 16;
    int len = snprintf(out, QUEUE_SENDER_MAX, "%.*s#%x", SPAN_FMT(message->client), (unsigned)part);
    return span_make(out, (size_t)len);
}

uint64_t queue_charge(size_t charged_bytes, size_t batch_count)
{
    return (uint64_t)charged_bytes + CHARGE_MESSAGE + CHARGE_BATCH * (uint64_t)batch_count;
}

/* A reason is peer text and must not end the head's line. */
static int append_line(struct buf *out, struct span text)
{
    char *room = NULL;
    int status = buf_reserve(out, text.len + 1, &room);
    if (status != 0) {
        return status;
    }
    for (size_t i = 0; i < text.len; i++) {
        room[i] = text.data[i] == '\n' || text.data[i] == '\r' ? ' ' : text.data[i];
    }
    room[text.len] = '\n';
    buf_commit(out, text.len + 1);
    return 0;
}

int queue_batch_store(const struct batch_head *head, const struct batch *batch, struct buf *out)
{
    int64_t due_ms = head->due_ms > 0 ? head->due_ms : 0;
    int status = buf_printf(out, "%c%c%06u%014lld %.*s|", head->state,
                            (char)('0' + head->starts % 10), head->epoch % EPOCH_WRAP,
                            (long long)due_ms, SPAN_FMT(head->pair));
    if (status == 0) {
        status = append_line(out, head->client);
    }
    if (status == 0) {
        struct span reason = head->reason;
        reason.len = reason.len > QUEUE_NAMES_MAX ? QUEUE_NAMES_MAX : reason.len;
        status = append_line(out, reason);
    }
    return status != 0 ? status : batch_encode(batch, out);
}

static int read_digits(struct span text, size_t at, size_t count, uint64_t *out)
{
    return span_to_u64(span_make(text.data + at, count), UINT64_MAX / 2, out);
}

int queue_batch_read(struct span stored, struct arena *arena, struct batch_head *out_head,
                     struct batch *out)
{
    uint64_t epoch = 0;
    uint64_t due_ms = 0;
    if (stored.len <= HEAD_FIXED || stored.data[HEAD_FIXED - 1] != ' ' ||
        read_digits(stored, EPOCH_AT, EPOCH_DIGITS, &epoch) != 0 ||
        read_digits(stored, DUE_AT, DUE_DIGITS, &due_ms) != 0) {
        return ERR_INVAL;
    }
    struct batch_head head = {
        .state = stored.data[0],
        .starts = (uint32_t)(stored.data[1] - '0') % 10,
        .epoch = (uint32_t)epoch,
        .due_ms = (int64_t)due_ms,
    };
    struct span rest = span_make(stored.data + HEAD_FIXED, stored.len - HEAD_FIXED);
    struct span route = span_cut(&rest, '\n');
    head.reason = span_cut(&rest, '\n');
    size_t lane_len = span_find(route, '|');
    struct span after = span_make(route.data + lane_len, route.len - lane_len);
    if (after.len == 0) {
        return ERR_INVAL;
    }
    size_t backend_len = span_find(span_make(after.data + 1, after.len - 1), '|');
    if (backend_len == after.len - 1) {
        return ERR_INVAL;
    }
    head.pair = span_make(route.data, lane_len + 1 + backend_len);
    head.client = span_make(head.pair.data + head.pair.len + 1, route.len - head.pair.len - 1);
    int status = batch_decode(rest, arena, out);
    if (status == 0) {
        *out_head = head;
    }
    return status;
}

int queue_message_store(const struct message *message, uint64_t charge, struct buf *out)
{
    char suffix[24];
    large_suffix(message_bytes(message), suffix);
    int status = buf_printf(out, "%zu%s %llu\n%.*s|%.*s\n", message->batch_count, suffix,
                            (unsigned long long)charge, SPAN_FMT(message->client),
                            SPAN_FMT(message->lane));
    return status != 0 ? status : message_encode(message, out);
}

uint64_t queue_message_charge(struct span stored)
{
    uint64_t charge = 0;
    struct span rest = span_cut(&stored, '\n');
    (void)span_cut(&rest, ' ');
    return span_to_u64(rest, UINT64_MAX / 2, &charge) == 0 ? charge : 0;
}

int queue_message_read(struct span stored, struct message *out, uint32_t *out_batches)
{
    struct span rest = stored;
    struct span first = span_cut(&rest, '\n');
    struct span count_text = span_cut(&first, ' ');
    count_text = span_cut(&count_text, '*');
    (void)span_cut(&rest, '\n'); /* for the scripts; the record has both names again */
    uint64_t count = 0;
    if (span_to_u64(count_text, UINT32_MAX, &count) != 0 || count == 0) {
        return ERR_INVAL;
    }
    int status = message_decode(rest, out);
    if (status == 0) {
        *out_batches = (uint32_t)count;
    }
    return status;
}
