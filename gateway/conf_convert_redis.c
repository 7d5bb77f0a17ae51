#include "gateway/conf_tree.h"

#include "gateway/base/codec.h"

/* `queue.redis`, the address of an external Redis in its five forms, and the options that belong to
 * some of them only. */

#define EXPECTED                                                                             \
    "embedded, redis://host:6379/0, rediss://..., unix:///path, sentinel://h1,h2/master or " \
    "cluster://h1,h2"
enum {
    HOSTS_MAX = 64,
    DATABASE_MAX = 1000,
    PORT_REDIS = 6379,
    PORT_SENTINEL = 26379,
};

static const char *url_part(struct conf_loader *loader, struct span part)
{
    struct buf out;
    buf_init_secret(&out, CONF_BYTES_MAX);
    const char *text = NULL;
    if (codec_percent_decode(part, false, &out) == ERR_OK &&
        memchr(buf_span(&out).data, '\0', buf_len(&out)) == NULL) {
        char *copy = conf_text(loader, buf_span(&out));
        conf_secret_keep(loader, copy);
        text = copy;
    }
    buf_release(&out);
    return text;
}

/* Takes "user:password@" off the front of `*authority`. Errors: ERR_INVAL. */
static int take_login(struct conf_loader *loader, struct span *authority, struct queue_conf *out)
{
    const char *at = authority->len > 0 ? memrchr(authority->data, '@', authority->len) : NULL;
    if (at == NULL) {
        return ERR_OK;
    }
    struct span password = span_make(authority->data, (size_t)(at - authority->data));
    struct span user = span_cut(&password, ':');
    size_t used = (size_t)(at - authority->data) + 1;
    *authority = span_make(authority->data + used, authority->len - used);
    out->user = user.len > 0 ? url_part(loader, user) : NULL;
    out->password = password.len > 0 ? url_part(loader, password) : NULL;
    bool is_bad = (user.len > 0 && out->user == NULL) ||
                  (password.len > 0 && out->password == NULL);
    return is_bad ? ERR_INVAL : ERR_OK;
}

/* "host", "host:port", "[v6]:port". Errors: ERR_INVAL. */
static int split_port(struct span authority, struct span *out_host, uint64_t *out_port)
{
    struct span rest = authority;
    if (span_starts(authority, SPAN_LIT("["))) {
        size_t end = span_find(authority, ']');
        if (end == authority.len) {
            return ERR_INVAL;
        }
        *out_host = span_make(authority.data + 1, end - 1);
        rest = span_make(authority.data + end + 1, authority.len - end - 1);
    } else {
        size_t colon = span_find(authority, ':');
        *out_host = span_make(authority.data, colon);
        rest = span_make(authority.data + colon, authority.len - colon);
    }
    if (out_host->len == 0 || (rest.len > 0 && rest.data[0] != ':')) {
        return ERR_INVAL;
    }
    return rest.len > 0 ? span_to_u64(span_make(rest.data + 1, rest.len - 1), 65535, out_port)
                        : ERR_OK;
}

/* Sentences for convert_mistake(), or NULL. */
static const char no_address[] = "this is no address of a Redis server";

static const char *take_database(struct span text, struct queue_conf *out)
{
    uint64_t database = 0;
    if (span_to_u64(text, DATABASE_MAX, &database) != ERR_OK) {
        return no_address;
    }
    out->database = (int)database;
    return NULL;
}

/* "[user[:password]@]host[:port][/db]" */
static const char *parse_server(struct conf_loader *loader, struct span rest,
                                struct queue_conf *out)
{
    struct span authority = span_cut(&rest, '/');
    struct span host = {.data = NULL, .len = 0};
    uint64_t port = PORT_REDIS;
    if ((rest.len > 0 && take_database(rest, out) != NULL) ||
        take_login(loader, &authority, out) != ERR_OK ||
        split_port(authority, &host, &port) != ERR_OK) {
        return no_address;
    }
    if (span_find(host, ',') < host.len) {
        return "several hosts are for sentinel:// and cluster://";
    }
    out->host = conf_text(loader, host);
    out->port = (uint16_t)port;
    return NULL;
}

/* "[user[:password]@]/path[?db=2]" */
static const char *parse_socket(struct conf_loader *loader, struct span rest,
                                struct queue_conf *out)
{
    size_t slash = span_find(rest, '/');
    struct span authority = span_make(rest.data, slash);
    struct span path = span_make(rest.data + slash, rest.len - slash);
    struct span query = path;
    path = span_cut(&query, '?');
    if (take_login(loader, &authority, out) != ERR_OK || authority.len > 0 || path.len < 2) {
        return "a Unix socket is given as unix:///path/to/redis.sock";
    }
    if (query.len > 0 && (!span_starts(query, SPAN_LIT("db=")) ||
                          take_database(span_make(query.data + 3, query.len - 3), out) != NULL)) {
        return "behind the path of a Unix socket only ?db=NUMBER may stand";
    }
    out->socket_path = conf_text(loader, path);
    return NULL;
}

/* "[user[:password]@]host[:port],host[:port],..." */
static const char *parse_hosts(struct conf_loader *loader, struct span authority,
                               uint64_t default_port, struct queue_conf *out)
{
    if (take_login(loader, &authority, out) != ERR_OK) {
        return no_address;
    }
    struct queue_host *hosts = conf_room(loader, HOSTS_MAX, sizeof(*hosts));
    size_t count = 0;
    do {
        struct span host = {.data = NULL, .len = 0};
        uint64_t port = default_port;
        if (split_port(span_cut(&authority, ','), &host, &port) != ERR_OK) {
            return "each host is NAME, NAME:PORT or [IPv6]:PORT, with commas between";
        }
        if (count == HOSTS_MAX) {
            return "these are too many hosts; the server finds the others by itself";
        }
        hosts[count++] = (struct queue_host){conf_text(loader, host), (uint16_t)port};
    } while (authority.len > 0);
    out->hosts = hosts;
    out->host_count = count;
    return NULL;
}

/* "HOSTS/master[/db]" */
static const char *parse_sentinel(struct conf_loader *loader, struct span rest,
                                  struct queue_conf *out)
{
    struct span hosts = span_cut(&rest, '/');
    struct span master = span_cut(&rest, '/');
    out->topology = QUEUE_SENTINEL;
    if (master.len == 0) {
        return "the name of the master is missing: sentinel://h1,h2,h3/NAME";
    }
    out->master_name = url_part(loader, master);
    if (out->master_name == NULL || (rest.len > 0 && take_database(rest, out) != NULL)) {
        return no_address;
    }
    return parse_hosts(loader, hosts, PORT_SENTINEL, out);
}

static const char *parse_cluster(struct conf_loader *loader, struct span rest,
                                 struct queue_conf *out)
{
    struct span hosts = span_cut(&rest, '/');
    out->topology = QUEUE_CLUSTER;
    if (rest.len > 0 && !span_eq(rest, SPAN_LIT("0"))) {
        return "a Redis Cluster has database 0 alone";
    }
    return parse_hosts(loader, hosts, PORT_REDIS, out);
}

static const struct scheme {
    const char *prefix;
    bool is_tls;
    const char *(*parse)(struct conf_loader *loader, struct span rest, struct queue_conf *out);
} schemes[] = {
    {"redis://", false, parse_server},      {"rediss://", true, parse_server},
    {"unix://", false, parse_socket},       {"redis+unix://", false, parse_socket},
    {"sentinel://", false, parse_sentinel}, {"cluster://", false, parse_cluster},
};

bool convert_redis(struct conf_loader *loader, const struct conf_node *node, struct conf_queue *out)
{
    struct span text = span_of(read_text(node, "redis"));
    if (text.data == NULL) {
        return false;
    }
    if (span_eq(text, SPAN_LIT("embedded"))) {
        out->kind = CONF_QUEUE_EMBEDDED;
        out->handle.managed = true;
        return true;
    }
    out->kind = CONF_QUEUE_STANDALONE;
    conf_secret_keep(loader, (char *)(uintptr_t)text.data);
    const char *mistake = no_address;
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        struct span prefix = span_of(schemes[i].prefix);
        if (span_starts(text, prefix)) {
            out->use_tls = out->use_tls || schemes[i].is_tls;
            mistake = schemes[i].parse(
                loader, span_make(text.data + prefix.len, text.len - prefix.len), &out->handle);
        }
    }
    if (mistake != NULL) {
        convert_mistake(loader, node, "queue", "redis", EXPECTED, mistake);
    }
    return mistake == NULL;
}

static bool is_given(const struct conf_node *node, const char *key)
{
    const struct conf_node *given = node_child(node, key);
    return given != NULL && given->origin != CONF_FROM_DEFAULT;
}

/* Each of `names` that is given is a mistake. */
static void forbid(struct conf_loader *loader, const struct conf_node *node,
                   const char *const *names, const char *expected, const char *why)
{
    for (size_t i = 0; names[i] != NULL; i++) {
        if (is_given(node, names[i])) {
            convert_mistake(loader, node, "queue", names[i], expected,
                            conf_textf(loader, "%s has no meaning %s", names[i], why));
        }
    }
}

static void check_tls(struct conf_loader *loader, const struct conf_node *node,
                      const struct conf_queue *queue)
{
    static const char *const tls_only[] = {"ca_file", "cert_file", "key_file", NULL};
    if (queue->handle.socket_path != NULL && queue->use_tls) {
        convert_mistake(loader, node, "queue", "tls", "false", "a Unix socket has no TLS");
    }
    if (!queue->use_tls) {
        forbid(loader, node, tls_only, "rediss:// or tls: true", "without TLS");
    } else if ((queue->cert_file == NULL) != (queue->key_file == NULL)) {
        convert_mistake(loader, node, "queue", queue->cert_file != NULL ? "cert_file" : "key_file",
                        "both", "a client certificate needs cert_file and key_file");
    }
}

void check_redis(struct conf_loader *loader, const struct conf_node *node,
                 const struct conf_queue *queue)
{
    static const char *const external_only[] = {
        "user",          "password",          "tls",      "ca_file", "cert_file", "key_file",
        "sentinel_user", "sentinel_password", "replicas", NULL};
    static const char *const embedded_only[] = {"data_dir", "redis_server", "disk_reserve", NULL};
    static const char *const sentinel_only[] = {"sentinel_user", "sentinel_password", NULL};
    static const char *const replicated_only[] = {"replicas", NULL};
    if (queue->kind == CONF_QUEUE_EMBEDDED) {
        forbid(loader, node, external_only, "", "with the embedded Redis server");
        if (queue->handle.durability == QUEUE_REPLICATED) {
            convert_mistake(loader, node, "queue", "durability", "fsync or memory",
                            "the embedded Redis server has no replicas");
        }
        return;
    }
    forbid(loader, node, embedded_only, "", "with an external Redis server");
    if (queue->handle.topology != QUEUE_SENTINEL) {
        forbid(loader, node, sentinel_only, "", "without sentinel://");
    }
    if (queue->handle.durability != QUEUE_REPLICATED) {
        forbid(loader, node, replicated_only, "durability: replicated",
               "without durability: replicated");
    }
    check_tls(loader, node, queue);
}
