/* A page of messages on its way: what queue_list.c (walking, merging, showing) and queue_find.c
 * (the search index) share. Private to queue/. */
#ifndef HEAVE_QUEUE_QUEUE_LIST_H
#define HEAVE_QUEUE_QUEUE_LIST_H

#include "queue/queue_internal.h"
#include "queue/search.h"

/* A place in a shard to go on behind: "" the newest, "0" the end; else what the walk made of it. */
#define LIST_POSITION_MAX (QUEUE_ENTRY_MAX + 20)

enum list_walk {
    LIST_HISTORY, /* ":a", positions count the messages before it */
    LIST_OPEN,    /* ":x", positions are EXPIRY~ID */
    LIST_DEAD,    /* ":z", positions are TIME~ID */
    LIST_STATE,   /* ":h:" or ":d:" of all pairs, positions are SCORE~ENTRY */
    LIST_INDEX,   /* positions are sSEGMENT or sSEGMENT~RECORD */
    LIST_ONE,     /* the text is an id */
};

struct list;

/* A message that may be on the page. */
struct list_entry {
    struct list *list;
    char id[MESSAGE_ID_MAX + 1];
    char position[LIST_POSITION_MAX]; /* of its shard, to go on behind this one */
    int64_t rank;                     /* larger comes first; then the larger (younger) id */
    uint32_t shard;
    int status; /* of reading it: 0, ERR_NOTFOUND (gone or unreadable), ERR_LIMIT (no room left) */
    struct message message;
};

struct list_shard {
    char position[LIST_POSITION_MAX]; /* where this page begins, then where the next one does */
    char scanned[LIST_POSITION_MAX];  /* where the script stopped looking */
    struct list_entry *entries;       /* in the order of the walk */
    size_t count;
    size_t merged; /* of those, on the page */
};

struct list {
    struct queue *queue;
    queue_list_cb cb;
    void *ctx;
    struct queue_filter filter; /* its spans are in the arena */
    enum list_walk walk;
    struct span term;                /* LIST_INDEX: what is looked up */
    char before[MESSAGE_ID_MAX + 1]; /* ids below it were made before before_ms; "" without */
    char since[MESSAGE_ID_MAX + 1];  /* ids below it were made before since_ms; "" without */
    size_t want;                     /* messages to read: limit, or more when many will not match */
    struct list_shard shards[QUEUE_SHARDS_MAX];
    struct list_entry **page; /* in order */
    size_t page_count;
    size_t waiting; /* answers to come */
    int status;
    struct arena arena;
};

/* The next free entry of a shard; NULL when it has as many as are wanted. */
struct list_entry *list_entry_new(struct list *list, uint32_t shard, struct span id);
/* A position as a script gave it; nothing is the end. */
void list_position_set(char out[LIST_POSITION_MAX], struct span text);

/* queue_find.c: asks a shard's index; `cb` gets the answer, to be given to queue_find_take(). */
MUST_USE int queue_find_ask(struct list *list, uint32_t shard, redis_cb cb, void *ctx);
bool queue_find_position_valid(struct span text);
void queue_find_take(struct list *list, uint32_t shard, const struct redis_value *value);

#endif
