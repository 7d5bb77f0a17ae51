#include "queue/cluster.h"

/* CRC-16/XMODEM: polynomial 0x1021, no reflection, start 0. Computed bit by bit: it is needed for
 * 32 short tags at start. */
static uint16_t crc16(struct span text)
{
    uint16_t crc = 0;
    for (size_t i = 0; i < text.len; i++) {
        crc = (uint16_t)(crc ^ (uint16_t)((unsigned char)text.data[i] << 8));
        for (int bit = 0; bit < 8; bit++) {
            bool high = (crc & 0x8000) != 0;
            crc = (uint16_t)(crc << 1);
            crc = high ? (uint16_t)(crc ^ 0x1021) : crc;
        }
    }
    return crc;
}

uint32_t cluster_slot(struct span key)
{
    size_t open = span_find(key, '{');
    if (open < key.len) {
        struct span rest = span_make(key.data + open + 1, key.len - open - 1);
        size_t close = span_find(rest, '}');
        if (close > 0 && close < rest.len) {
            key = span_make(rest.data, close);
        }
    }
    return crc16(key) % CLUSTER_SLOTS;
}

/* Each range: first slot, last slot, master [host, port, id, ...], replicas. */
int cluster_master(const struct redis_value *map, uint32_t slot, struct cluster_address *out)
{
    for (size_t i = 0; map->type == REDIS_ARRAY && i < map->count; i++) {
        const struct redis_value *range = &map->items[i];
        const struct redis_value *master = redis_item(range, 2);
        if (redis_item(range, 0)->type != REDIS_INTEGER || master->type != REDIS_ARRAY ||
            redis_integer(redis_item(range, 0)) > slot ||
            redis_integer(redis_item(range, 1)) < slot) {
            continue;
        }
        int64_t port = redis_integer(redis_item(master, 1));
        if (port <= 0 || port > UINT16_MAX) {
            return ERR_NOTFOUND;
        }
        struct span host = redis_item(master, 0)->text;
        /* "?" is what a node says that was told to announce a name and has none. */
        out->host = span_eq(host, SPAN_LIT("?")) ? (struct span){0} : host;
        out->port = (uint16_t)port;
        return 0;
    }
    return ERR_NOTFOUND;
}

/* "MOVED 3999 127.0.0.1:6381", "ASK 3999 ::1:6381", "MOVED 3999 :6381". */
enum cluster_redirect cluster_redirect(struct span text, struct cluster_address *out_address)
{
    struct span rest = text;
    struct span word = span_cut(&rest, ' ');
    bool moved = span_eq(word, SPAN_LIT("MOVED"));
    if (!moved && !span_eq(word, SPAN_LIT("ASK"))) {
        return CLUSTER_LATER;
    }
    (void)span_cut(&rest, ' ');
    size_t colon = rest.len;
    while (colon > 0 && rest.data[colon - 1] != ':') {
        colon--;
    }
    uint64_t port = 0;
    if (colon == 0 ||
        span_to_u64(span_make(rest.data + colon, rest.len - colon), UINT16_MAX, &port) != 0 ||
        port == 0) {
        return CLUSTER_LATER;
    }
    out_address->host = span_make(rest.data, colon - 1);
    out_address->port = (uint16_t)port;
    return moved ? CLUSTER_MOVED : CLUSTER_ASK;
}
