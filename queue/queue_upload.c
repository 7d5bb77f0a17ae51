/* Large bodies on their way in, piece by piece.
 *
 *   begun ──► list opened (with an expiry) ──► pieces ... ──► group written behind them ──► freed
 *                              └── a piece fails, the connection breaks ──► group failed ──► freed
 *
 * Only a window of pieces is encoded and unanswered at a time, so that a message is in memory once
 * and the window beside it. The pieces and the script that makes them a message go over one
 * connection in this order, and the script counts them: whatever goes wrong on the way (a lost
 * connection, a slot that moved), there is a whole body or no message. A list nobody made a message
 * of ends by itself; RPUSHX never makes one without an expiry.
 *
 * Invariant: nothing is given to another connection while something earlier may not have arrived.
 * In a Cluster a moved shard's next piece would else overtake those that are sent after it. Should
 * an answer show that a piece came to another place in the list, the body fails.
 */
#include "queue/queue_internal.h"

#include "gateway/base/failpoint.h"
#include "queue/body.h"

#include <stdio.h>

enum {
    BODY_ALONE_MS = 3600 * 1000,
    WINDOW_PIECES = 4, /* of one body, unanswered */
};
/* Of all bodies to one server, not yet written to it; each body may have one piece beyond it. */
#define WINDOW_BYTES ((size_t)1 << 20)

struct queue_upload {
    struct queue_upload *next;
    struct queue *queue;
    struct enqueue_group *group; /* of this one message; NULL once written or failed */
    uint32_t shard;
    char id[MESSAGE_ID_MAX + 1];
    struct span prefix, body; /* lent by the caller of queue_enqueue() while `group` is here */
    size_t bytes;
    uint32_t next_piece, pieces;
    size_t unanswered; /* commands */
    int64_t length;    /* of the list, as the last answer must have said */
    uint64_t place;    /* nodes_place() of what was sent; 0: nothing, or it is parked */
    bool opened;
    bool failed;
};

static void forget(struct queue_upload *upload)
{
    struct queue_upload **at = &upload->queue->uploads;
    while (*at != upload) {
        at = &(*at)->next;
    }
    *at = upload->next;
    if (upload->queue->uploads == NULL) {
        body_codec_rest(upload->queue->codec);
    }
    mem_free(upload);
}

/* The body need not stay any more. */
static struct enqueue_group *take_group(struct queue_upload *upload)
{
    struct enqueue_group *group = upload->group;
    upload->group = NULL;
    upload->queue->upload_bytes -= upload->bytes;
    return group;
}

/* What has arrived is of no use. */
static void remove_pieces(struct queue_upload *upload)
{
    if (upload->queue->redis_closing) {
        return;
    }
    char key[QUEUE_BODY_KEY_MAX];
    struct redis_args args;
    queue_body_key(upload->shard, span_of(upload->id), key);
    redis_args_init(&args);
    redis_args_text(&args, "UNLINK");
    redis_args_text(&args, key);
    if (nodes_call(upload->queue->nodes, upload->shard, &args, NULL, NULL) != 0) {
        return; /* away: its expiry does it */
    }
}

static void step(struct queue_upload *upload);

static void on_answer(void *ctx, int status, const struct redis_value *value)
{
    struct queue_upload *upload = ctx;
    upload->unanswered--;
    upload->length++;
    /* The list's length; 0 when there is none. */
    if (status != 0 || redis_integer(value) != upload->length) {
        upload->failed = true;
    }
    step(upload);
}

static void send_open(struct queue_upload *upload)
{
    struct redis_args head;
    queue_call_begin(upload->shard, &head);
    redis_args_text(&head, upload->id);
    redis_args_number(&head, BODY_ALONE_MS);
    redis_args_number(&head, (int64_t)upload->bytes);
    upload->opened = true;
    if (nodes_eval(upload->queue->nodes, upload->shard, SCRIPT_BODY, 1, &head, NULL, on_answer,
                   upload) == 0) {
        upload->unanswered++;
    } else {
        upload->failed = true;
    }
}

/* `count` bytes from `at` on of prefix and body together. */
static void slice(const struct queue_upload *upload, size_t at, size_t count,
                  struct span *out_first, struct span *out_second)
{
    struct span prefix = upload->prefix;
    size_t in_prefix = at < prefix.len ? prefix.len - at : 0;
    in_prefix = in_prefix < count ? in_prefix : count;
    *out_first = in_prefix > 0 ? span_make(prefix.data + at, in_prefix) : (struct span){0};
    size_t body_at = at + in_prefix - prefix.len;
    *out_second = count > in_prefix ? span_make(upload->body.data + body_at, count - in_prefix)
                                    : (struct span){0};
}

static void send_piece(struct queue_upload *upload)
{
    struct queue *queue = upload->queue;
    struct span first;
    struct span second;
    struct span frame = {0};
    struct body_piece piece = {
        .id = span_of(upload->id), .index = upload->next_piece, .body_bytes = upload->bytes};
    slice(upload, piece.index * BODY_PIECE_BYTES, body_piece_bytes(&piece), &first, &second);
    char key[QUEUE_BODY_KEY_MAX];
    struct redis_args args;
    queue_body_key(upload->shard, piece.id, key);
    redis_args_init(&args);
    redis_args_text(&args, "RPUSHX");
    redis_args_text(&args, key);
    int status = body_encode(queue->codec, &piece, first, second, &frame);
    args.status = args.status != 0 ? args.status : status;
    redis_args_add(&args, frame);
    if (nodes_call(queue->nodes, upload->shard, &args, on_answer, upload) == 0) {
        upload->unanswered++;
        upload->next_piece++;
        FAILPOINT("enqueue-body-ahead");
    } else {
        upload->failed = true;
    }
}

/* Whether what is sent now cannot overtake what was sent before: it goes the same way, or all of
 * that has arrived. What was parked has left in order when there is a way again. */
static bool in_place(struct queue_upload *upload)
{
    uint64_t place = nodes_place(upload->queue->nodes, upload->shard);
    if (upload->place == 0 || upload->unanswered == 0) {
        upload->place = place;
    }
    return place == upload->place;
}

static bool may_send(const struct queue_upload *upload)
{
    if (upload->failed || upload->next_piece == upload->pieces) {
        return false;
    }
    /* Its own answers are what wakes it, so one is always on the way. */
    return upload->unanswered <= 1 ||
           (upload->unanswered < WINDOW_PIECES &&
            nodes_waiting_bytes(upload->queue->nodes, upload->shard) < WINDOW_BYTES);
}

/* Goes on as far as the window lets it; may free the upload. */
static void step(struct queue_upload *upload)
{
    if (upload->group != NULL && in_place(upload)) {
        if (!upload->opened) {
            send_open(upload);
        }
        while (may_send(upload)) {
            send_piece(upload);
        }
        if (!upload->failed && upload->next_piece == upload->pieces && in_place(upload)) {
            queue_group_send(take_group(upload));
        }
    }
    if (upload->unanswered > 0) {
        return;
    }
    if (upload->group != NULL) {
        /* Its script was not written: nothing can have been stored. */
        remove_pieces(upload);
        queue_group_fail(take_group(upload), upload->queue->closing ? ERR_CLOSED : ERR_UNAVAILABLE);
    }
    forget(upload);
}

void queue_upload_begin(struct queue *queue, struct enqueue_group *group, uint32_t shard,
                        const struct message *message)
{
    struct queue_upload *upload = mem_zero(sizeof(*upload));
    upload->queue = queue;
    upload->group = group;
    upload->shard = shard;
    upload->prefix = message->prefix;
    upload->body = message->body;
    upload->bytes = message_bytes(message);
    upload->pieces = (uint32_t)body_piece_count(upload->bytes);
    (void)snprintf(upload->id, sizeof(upload->id), "%.*s", SPAN_FMT(message->id));
    queue->upload_bytes += upload->bytes;
    struct queue_upload **last = &queue->uploads;
    while (*last != NULL) {
        last = &(*last)->next;
    }
    *last = upload;
    queue_flush_later(queue);
}

void queue_upload_flush(struct queue *queue)
{
    struct queue_upload *next = NULL;
    for (struct queue_upload *upload = queue->uploads; upload != NULL; upload = next) {
        next =
            upload->next; /* one that ends frees itself alone; its callback only adds at the end */
        if (!upload->opened) {
            step(upload);
        }
    }
}

void queue_upload_fail(struct queue *queue)
{
    while (queue->uploads != NULL) {
        struct queue_upload *upload = queue->uploads;
        ASSERT(upload->unanswered == 0); /* its connection is closed */
        upload->failed = true;
        step(upload);
    }
}
