/* The stored form of messages and batches; see message.h for the layout.
 *
 * Invariant: a decoder never reads past its input. Every read goes through reader_take(), which is
 * the one place that moves the cursor. */
#include "queue/message.h"

#include "gateway/base/err.h"

enum {
    STORED_VERSION = 2, /* of messages; 1 had no source and no tags */
    BATCH_VERSION = 1,
    LAST_REPLY_MAX = 300,
    VARINT_MAX = 10, /* bytes a 64-bit LEB128 number takes at most */
};

const char *recipient_state_name(enum recipient_state state)
{
    switch (state) {
    case RECIPIENT_QUEUED:
        return "queued";
    case RECIPIENT_DELIVERED:
        return "delivered";
    case RECIPIENT_FAILED:
        return "failed";
    case RECIPIENT_EXPIRED:
        return "expired";
    case RECIPIENT_SUPPRESSED:
        return "suppressed";
    case RECIPIENT_CANCELLED:
        return "cancelled";
    case RECIPIENT_UNKNOWN:
        return "unknown";
    }
    UNREACHABLE();
}

const char *batch_state_name(enum batch_state state)
{
    switch (state) {
    case BATCH_READY:
        return "ready";
    case BATCH_CLAIMED:
        return "claimed";
    case BATCH_STARTED:
        return "started";
    case BATCH_DELAYED:
        return "delayed";
    case BATCH_HELD:
        return "held";
    case BATCH_DONE:
        return "done";
    }
    UNREACHABLE();
}

size_t batch_open_count(const struct batch *batch)
{
    size_t open = 0;
    for (size_t i = 0; i < batch->recipient_count; i++) {
        open += batch->recipients[i].state == RECIPIENT_QUEUED ? 1 : 0;
    }
    return open;
}

/* Numbers are LEB128: seven bits a byte, lowest first, the top bit set on all but the last. */
static int put_number(struct buf *out, uint64_t value)
{
    char bytes[VARINT_MAX];
    size_t len = 0;
    do {
        unsigned char low = (unsigned char)(value & 0x7f);
        value >>= 7;
        bytes[len++] = (char)(value != 0 ? low | 0x80 : low);
    } while (value != 0);
    return buf_append(out, span_make(bytes, len));
}

static int put_text(struct buf *out, struct span text)
{
    int status = put_number(out, text.len);
    return status != 0 ? status : buf_append(out, text);
}

/* Takes `*status` along so that an encoder reads as a list of fields. */
static void add_number(struct buf *out, int *status, uint64_t value)
{
    if (*status == 0) {
        *status = put_number(out, value);
    }
}

static void add_text(struct buf *out, int *status, struct span text)
{
    if (*status == 0) {
        *status = put_text(out, text);
    }
}

/* Undoes a half-written record, so that a failed encode leaves `out` as it was. */
static int finish(struct buf *out, size_t len_before, int status)
{
    if (status != 0) {
        buf_truncate(out, len_before);
    }
    return status;
}

int message_encode(const struct message *message, struct buf *out)
{
    size_t before = buf_len(out);
    int status = buf_append_byte(out, STORED_VERSION);
    add_text(out, &status, message->client);
    add_text(out, &status, message->lane);
    add_text(out, &status, message->reverse_path);
    add_text(out, &status, message->header_from);
    add_text(out, &status, message->message_id);
    add_text(out, &status, message->subject);
    add_text(out, &status, message->source);
    add_text(out, &status, message->tags);
    add_number(out, &status, (uint64_t)message->accepted_ms);
    add_number(out, &status, (uint64_t)message->expires_ms);
    add_number(out, &status, message->flags);
    return finish(out, before, status);
}

static void add_recipient(struct buf *out, int *status, const struct recipient *recipient)
{
    struct span reply = recipient->last_reply;
    if (reply.len > LAST_REPLY_MAX) {
        reply.len = LAST_REPLY_MAX;
    }
    add_text(out, status, recipient->address);
    add_number(out, status, (uint64_t)recipient->state);
    add_number(out, status, (uint64_t)recipient->at_ms);
    add_text(out, status, reply);
}

int batch_encode(const struct batch *batch, struct buf *out)
{
    if (batch->recipient_count > BATCH_RECIPIENTS_MAX) {
        return ERR_LIMIT;
    }
    size_t before = buf_len(out);
    int status = buf_append_byte(out, BATCH_VERSION);
    add_number(out, &status, batch->number);
    add_text(out, &status, batch->lane);
    add_text(out, &status, batch->backend);
    add_text(out, &status, batch->account);
    add_number(out, &status, batch->attempts);
    add_number(out, &status, batch->epoch);
    add_number(out, &status, batch->flags);
    add_number(out, &status, batch->recipient_count);
    for (size_t i = 0; i < batch->recipient_count; i++) {
        add_recipient(out, &status, &batch->recipients[i]);
    }
    return finish(out, before, status);
}

/* A cursor over stored bytes. `status` keeps the first failure; reads after one give zeros. */
struct reader {
    struct span rest;
    int status;
};

static struct span reader_take(struct reader *reader, uint64_t len)
{
    if (reader->status != 0 || len > reader->rest.len) {
        reader->status = reader->status != 0 ? reader->status : ERR_INVAL;
        return (struct span){0};
    }
    struct span taken = span_make(reader->rest.data, (size_t)len);
    reader->rest.data += taken.len;
    reader->rest.len -= taken.len;
    return taken;
}

static uint64_t read_number(struct reader *reader, uint64_t max)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 7 * VARINT_MAX; shift += 7) {
        struct span byte = reader_take(reader, 1);
        if (reader->status != 0) {
            return 0;
        }
        uint64_t low = (unsigned char)byte.data[0] & 0x7f;
        if (shift == 63 && low > 1) {
            break; /* does not fit 64 bits */
        }
        value |= low << shift;
        if (((unsigned char)byte.data[0] & 0x80) == 0) {
            if (value > max) {
                break;
            }
            return value;
        }
    }
    reader->status = ERR_INVAL;
    return 0;
}

static struct span read_text(struct reader *reader)
{
    return reader_take(reader, read_number(reader, SIZE_MAX));
}

/* The version, 1 to `newest`. */
static int read_version(struct reader *reader, int newest)
{
    struct span version = reader_take(reader, 1);
    if (reader->status == 0 && (version.data[0] < 1 || version.data[0] > newest)) {
        reader->status = ERR_UNSUPPORTED;
    }
    return reader->status == 0 ? version.data[0] : 0;
}

/* All bytes must have been used: a longer record was not written by this version. */
static int reader_end(const struct reader *reader)
{
    if (reader->status != 0) {
        return reader->status;
    }
    return reader->rest.len == 0 ? 0 : ERR_INVAL;
}

int message_decode(struct span stored, struct message *out)
{
    struct reader reader = {.rest = stored};
    struct message message = *out;
    int version = read_version(&reader, STORED_VERSION);
    message.client = read_text(&reader);
    message.lane = read_text(&reader);
    message.reverse_path = read_text(&reader);
    message.header_from = read_text(&reader);
    message.message_id = read_text(&reader);
    message.subject = read_text(&reader);
    message.source = version >= 2 ? read_text(&reader) : (struct span){0};
    message.tags = version >= 2 ? read_text(&reader) : (struct span){0};
    message.accepted_ms = (int64_t)read_number(&reader, UINT64_MAX);
    message.expires_ms = (int64_t)read_number(&reader, UINT64_MAX);
    message.flags = (uint32_t)read_number(&reader, UINT32_MAX);
    int status = reader_end(&reader);
    if (status == 0) {
        *out = message;
    }
    return status;
}

static void read_recipient(struct reader *reader, struct recipient *out)
{
    out->address = read_text(reader);
    out->state = (enum recipient_state)read_number(reader, RECIPIENT_STATE_COUNT - 1);
    out->at_ms = (int64_t)read_number(reader, UINT64_MAX);
    out->last_reply = read_text(reader);
}

int batch_decode(struct span stored, struct arena *arena, struct batch *out)
{
    struct reader reader = {.rest = stored};
    struct batch batch = {.state = out->state, .due_ms = out->due_ms};
    (void)read_version(&reader, BATCH_VERSION); /* a wrong one is kept in the reader */
    batch.number = (uint32_t)read_number(&reader, UINT32_MAX);
    batch.lane = read_text(&reader);
    batch.backend = read_text(&reader);
    batch.account = read_text(&reader);
    batch.attempts = (uint32_t)read_number(&reader, UINT32_MAX);
    batch.epoch = (uint32_t)read_number(&reader, UINT32_MAX);
    batch.flags = (uint32_t)read_number(&reader, UINT32_MAX);
    uint64_t count = read_number(&reader, UINT64_MAX);
    if (reader.status != 0) {
        return reader.status;
    }
    if (count > BATCH_RECIPIENTS_MAX) {
        return ERR_LIMIT;
    }
    batch.recipient_count = (size_t)count;
    if (count > 0) {
        batch.recipients = arena_alloc(arena, (size_t)count * sizeof(*batch.recipients));
        if (batch.recipients == NULL) {
            return ERR_NOMEM;
        }
    }
    for (size_t i = 0; i < batch.recipient_count; i++) {
        read_recipient(&reader, &batch.recipients[i]);
    }
    int status = reader_end(&reader);
    if (status == 0) {
        *out = batch;
    }
    return status;
}
