#include "gateway/conf_tree.h"

#include "gateway/base/codec.h"
#include "queue/keyring.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

/* From the checked tree to the structs: process, listeners, queue, lanes. Credentials, backends,
 * routes and clients are in conf_convert_mail.c. Everything is read even when mistakes were found
 * before, so that one run shows them all. */

/* A message with more Received fields is in a loop (RFC 5321 6.3; intake.h). */
#define LOOP_LIMIT 50

struct conf_node *read_section(const struct conf_node *map, const char *key)
{
    struct conf_node *node = node_child(map, key);
    return node != NULL && !node->is_bad && node->kind != CONF_NODE_SCALAR ? node : NULL;
}

static const struct conf_node *read_good(const struct conf_node *map, const char *key)
{
    const struct conf_node *node = node_child(map, key);
    return node != NULL && !node->is_bad ? node : NULL;
}

uint64_t read_number_of(const struct conf_node *map, const char *key)
{
    const struct conf_node *node = read_good(map, key);
    return node != NULL ? (uint64_t)node->number : 0;
}

const char *read_text(const struct conf_node *map, const char *key)
{
    const struct conf_node *node = read_good(map, key);
    return node != NULL && node->kind == CONF_NODE_SCALAR ? node->text : NULL;
}

void read_strings(struct conf_loader *loader, const struct conf_node *map, const char *key,
                  const char *const **out_texts, size_t *out_count)
{
    const struct conf_node *list = read_section(map, key);
    if (list == NULL || list->count == 0) {
        return;
    }
    const char **texts = conf_room(loader, list->count, sizeof *texts);
    size_t count = 0;
    for (const struct conf_node *at = list->first; at != NULL; at = at->next) {
        texts[count++] = at->text;
    }
    *out_texts = texts;
    *out_count = count;
}

uint32_t read_bits(const struct conf_node *map, const char *key)
{
    const struct conf_node *list = read_section(map, key);
    uint32_t bits = 0;
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next) {
        bits |= 1u << at->number;
    }
    return bits;
}

void convert_mistake(struct conf_loader *loader, const struct conf_node *map, const char *path,
                     const char *key, const char *expected, const char *message)
{
    const struct conf_node *node = node_child(map, key);
    char full[CONF_PATH_MAX];
    conf_path_join(full, path, key);
    if (node != NULL && node->origin == CONF_FROM_DEFAULT) {
        node = NULL; /* a default has no place of its own */
    }
    conf_mistake(loader, node != NULL ? node : map, full, expected, "%s", message);
}

void default_text(struct conf_loader *loader, struct conf_node *map, const char *key,
                  const char *text)
{
    if (map != NULL && map->kind == CONF_NODE_MAP && node_child(map, key) == NULL) {
        (void)node_add_text(loader, map, key, text, CONF_FROM_DEFAULT);
    }
}

/* ---- Process ---- */

static void convert_hostname(struct conf_loader *loader, struct conf_node *root, struct conf *conf)
{
    conf->hostname = read_text(root, "hostname");
    if (conf->hostname == NULL) {
        return;
    }
    struct span name = span_of(conf->hostname);
    bool is_good = name.len <= 255 && name.data[0] != '.' && name.data[0] != '-';
    for (size_t i = 0; i < name.len; i++) {
        char byte = name.data[i];
        bool is_letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
        is_good = is_good &&
                  (is_letter || (byte >= '0' && byte <= '9') || byte == '.' || byte == '-');
    }
    if (!is_good) {
        convert_mistake(loader, root, "", "hostname", "letters, digits, dots and dashes",
                        "this is no host name");
    }
}

static void convert_process(struct conf_loader *loader, struct conf_node *root, struct conf *conf)
{
    convert_hostname(loader, root, conf);
    conf->roles = read_bits(root, "roles");
    const struct conf_node *roles = read_section(root, "roles");
    if (roles != NULL && conf->roles == 0) {
        convert_mistake(loader, root, "", "roles", "ingest, dispatch or both",
                        "the process has nothing to do");
    }
    const struct conf_node *threads = read_section(root, "threads");
    conf->ingress_threads = (uint32_t)read_number_of(threads, "ingress");
    conf->delivery_threads = (uint32_t)read_number_of(threads, "delivery");
    conf->drain_timeout_ms = (int64_t)read_number_of(root, "drain_timeout");
    const struct conf_node *log = read_section(root, "log");
    conf->log = (struct conf_log){
        .level = (enum log_level)read_number_of(log, "level"),
        .form = (enum log_form)read_number_of(log, "format"),
        .full_addresses = read_number_of(log, "addresses") == 1,
    };
    const struct conf_node *tls = read_section(root, "tls");
    conf->tls = (struct conf_tls){
        .cert_file = read_text(tls, "cert_file"),
        .key_file = read_text(tls, "key_file"),
        .min_version = (enum tls_version)read_number_of(tls, "min_version"),
    };
    bool has_cert = node_child(tls, "cert_file") != NULL;
    if (tls != NULL && has_cert != (node_child(tls, "key_file") != NULL)) {
        convert_mistake(loader, tls, "tls", has_cert ? "cert_file" : "key_file", "",
                        "cert_file and key_file go together");
    }
}

/* ---- Listeners ---- */

static void check_listener(struct conf_loader *loader, const struct conf_node *node,
                           const char *path, const struct conf_listener *l,
                           const struct conf_node *tls)
{
    if (l->tls == CONF_TLS_STARTTLS && l->protocol != CONF_PROTOCOL_SMTP) {
        convert_mistake(loader, node, path, "tls", "off or implicit",
                        "starttls is for smtp listeners");
    }
    if (l->tls != CONF_TLS_OFF && node_child(tls, "cert_file") == NULL) {
        convert_mistake(loader, node, path, "tls", "tls: {cert_file: ..., key_file: ...}",
                        "a listener with TLS needs a certificate");
    }
    if (l->protocol == CONF_PROTOCOL_SMTP && l->auth == CONF_AUTH_REQUIRED &&
        l->tls == CONF_TLS_OFF && !l->auth_without_tls) {
        convert_mistake(loader, node, path, "auth", "tls: starttls, or auth_without_tls: true",
                        "nobody could log in here: AUTH is not offered without TLS");
    }
}

static void convert_listener(struct conf_loader *loader, const struct conf_node *node,
                             struct conf_listener *out)
{
    *out = (struct conf_listener){
        .protocol = (enum conf_protocol)read_number_of(node, "protocol"),
        .bind = read_text(node, "bind"),
        .tls = (enum conf_tls_mode)read_number_of(node, "tls"),
        .auth = (enum conf_auth)read_number_of(node, "auth"),
        .auth_without_tls = read_number_of(node, "auth_without_tls") == 1,
        .max_recipients = (uint32_t)read_number_of(node, "max_recipients"),
        .max_message_bytes = read_number_of(node, "max_message_bytes"),
        .max_connections = (uint32_t)read_number_of(node, "max_connections"),
        .idle_timeout_ms = (int64_t)read_number_of(node, "idle_timeout"),
        .line_endings = (enum conf_line_endings)read_number_of(node, "line_endings"),
    };
    read_strings(loader, node, "networks", &out->networks, &out->network_count);
}

static bool bind_taken(const struct conf_listener *listeners, size_t count, const char *bind)
{
    struct span text = span_of(bind);
    for (size_t i = 0; i < count && !span_ends(text, SPAN_LIT(":0")); i++) {
        if (listeners[i].bind != NULL && strcmp(listeners[i].bind, bind) == 0) {
            return true;
        }
    }
    return false;
}

static void convert_listeners(struct conf_loader *loader, const struct conf_node *root,
                              struct conf *conf)
{
    const struct conf_node *list = read_section(root, "listeners");
    size_t room = list != NULL ? list->count : 0;
    struct conf_listener *listeners = conf_room(loader, room, sizeof *listeners);
    size_t count = 0;
    bool takes_mail = false;
    size_t index = 0;
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next, index++) {
        if (at->kind != CONF_NODE_MAP) {
            continue;
        }
        char path[CONF_PATH_MAX];
        (void)snprintf(path, sizeof path, "listeners.%zu", index);
        convert_listener(loader, at, &listeners[count]);
        const char *bind = listeners[count].bind;
        if (bind != NULL && bind_taken(listeners, count, bind)) {
            convert_mistake(loader, at, path, "bind", "", "another listener has this address");
        }
        check_listener(loader, at, path, &listeners[count], node_child(root, "tls"));
        takes_mail = takes_mail || strcmp(node_text(at, "protocol"), "admin") != 0;
        count++;
    }
    if ((conf->roles & CONF_ROLE_INGEST) != 0 && !takes_mail &&
        (list != NULL || node_child(root, "listeners") == NULL)) {
        convert_mistake(loader, root, "", "listeners", "- {protocol: smtp, bind: \"0.0.0.0:25\"}",
                        "the role ingest needs a listener for smtp or http");
    }
    conf->listeners = listeners;
    conf->listener_count = count;
}

/* ---- Queue ---- */

/* The text of the key file, checked; it stays with the configuration and is wiped with it. */
static const char *read_keys(struct conf_loader *loader, const struct conf_node *queue,
                             const char *path)
{
    struct err err = {0};
    struct keyring *keys = NULL;
    const char *text = NULL;
    struct buf bytes;
    buf_init_secret(&bytes, CONF_SECRET_FILE_MAX);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    int status = fd >= 0 ? conf_read_all(fd, &bytes) : ERR_IO;
    if (fd >= 0) {
        (void)close(fd); /* nothing was written: its result cannot matter */
    }
    if (status != ERR_OK) {
        (void)err_set(&err, status, "%s cannot be read as a key file below 64 KiB.", path);
    } else if (span_find(buf_span(&bytes), '\0') < buf_len(&bytes)) {
        (void)err_set(&err, ERR_INVAL, "%s holds a NUL byte.", path);
    } else if (keyring_parse(buf_span(&bytes), &keys, &err) == ERR_OK) {
        char *copy = conf_text(loader, buf_span(&bytes));
        conf_secret_keep(loader, copy);
        text = copy;
    }
    if (text == NULL) {
        convert_mistake(loader, queue, "queue", "encryption_key_file",
                        "lines \"name:key\", the key of 32 bytes in base64", err.text);
    }
    keyring_free(&keys);
    buf_release(&bytes);
    return text;
}

static void convert_queue(struct conf_loader *loader, const struct conf_node *root,
                          struct conf *conf)
{
    const struct conf_node *node = read_section(root, "queue");
    struct conf_queue *queue = &conf->queue;
    if (node == NULL) {
        return;
    }
    queue->use_tls = read_number_of(node, "tls") != 0;
    bool is_known = convert_redis(loader, node, queue);
    queue->data_dir = read_text(node, "data_dir");
    queue->server_program = read_text(node, "redis_server");
    queue->disk_reserve_bytes = read_number_of(node, "disk_reserve");
    queue->ca_file = read_text(node, "ca_file");
    queue->cert_file = read_text(node, "cert_file");
    queue->key_file = read_text(node, "key_file");
    const char *user = read_text(node, "user");
    const char *password = read_text(node, "password");
    queue->handle.user = user != NULL ? user : queue->handle.user;
    queue->handle.password = password != NULL ? password : queue->handle.password;
    queue->handle.sentinel_user = read_text(node, "sentinel_user");
    queue->handle.sentinel_password = read_text(node, "sentinel_password");
    queue->handle.replicas = (uint32_t)read_number_of(node, "replicas");
    queue->handle.durability = (enum queue_durability)read_number_of(node, "durability");
    queue->handle.shards = (uint32_t)read_number_of(node, "shards");
    queue->handle.shards = queue->handle.shards > 0 ? queue->handle.shards : 1;
    queue->handle.lease_ms = (int64_t)read_number_of(node, "lease");
    queue->handle.retention_ms = (int64_t)read_number_of(node, "retention");
    queue->handle.history_bytes = read_number_of(node, "history_bytes");
    queue->handle.dead_letters_ms = (int64_t)read_number_of(node, "dead_letters");
    queue->handle.dead_letter_bytes = read_number_of(node, "dead_letter_bytes");
    queue->handle.max_bytes = read_number_of(node, "max_bytes");
    conf->admission.max_bytes = queue->handle.max_bytes;
    conf->admission.max_messages = read_number_of(node, "max_messages");
    conf->admission.max_memory_percent = (uint32_t)read_number_of(node, "max_memory");
    queue->handle.compression = read_number_of(node, "compression") == 1;
    queue->encryption_key_file = read_text(node, "encryption_key_file");
    if (queue->encryption_key_file != NULL) {
        queue->handle.encryption_keys = read_keys(loader, node, queue->encryption_key_file);
    }
    if (is_known) {
        check_redis(loader, node, queue);
    }
}

/* ---- Lanes ---- */

static void convert_lane(struct conf_loader *loader, const struct conf_node *node,
                         struct conf_lane *out)
{
    *out = (struct conf_lane){
        .name = node->key,
        .share_percent = (uint32_t)read_number_of(node, "share"),
        .expires_ms = (int64_t)read_number_of(node, "expires"),
        .on_unknown = (enum conf_on_unknown)read_number_of(node, "on_unknown"),
    };
    int64_t *waits = conf_room(loader, CONF_LADDER_MAX, sizeof *waits);
    const char *ladder = read_text(node, "retry");
    if (ladder != NULL &&
        conf_parse_ladder(span_of(ladder), waits, CONF_LADDER_MAX, &out->retry_count,
                          &out->retry_last_repeats) == ERR_OK) {
        out->retry_ms = waits;
    }
}

static void convert_lanes(struct conf_loader *loader, const struct conf_node *root,
                          struct conf *conf)
{
    const struct conf_node *list = read_section(root, "lanes");
    size_t room = list != NULL ? list->count : 0;
    struct conf_lane *lanes = conf_room(loader, room, sizeof *lanes);
    const char **names = conf_room(loader, room, sizeof *names);
    int64_t *expires = conf_room(loader, room, sizeof *expires);
    struct admission_lane *admitted = conf_room(loader, room, sizeof *admitted);
    struct queue_lane_limit *limits = conf_room(loader, room, sizeof *limits);
    size_t count = 0;
    for (const struct conf_node *at = list != NULL ? list->first : NULL; at != NULL;
         at = at->next) {
        if (at->kind == CONF_NODE_MAP) {
            convert_lane(loader, at, &lanes[count]);
            names[count] = lanes[count].name;
            expires[count] = lanes[count].expires_ms;
            admitted[count] = (struct admission_lane){
                .name = lanes[count].name,
                .admit_percent = (uint32_t)read_number_of(at, "admit"),
                .max_age_ms = (int64_t)read_number_of(at, "max_age"),
            };
            limits[count] = (struct queue_lane_limit){.lane = lanes[count].name,
                                                      .percent = admitted[count].admit_percent};
            count++;
        }
    }
    conf->lanes = lanes;
    conf->lane_count = count;
    conf->admission.lanes = admitted;
    conf->admission.lane_count = count;
    conf->queue.handle.lane_limits = limits;
    conf->queue.handle.lane_limit_count = count;
    conf->intake.lane_names = names;
    conf->intake.lane_expires_ms = expires;
    conf->intake.lane_count = count;
}

static size_t largest_message(const struct conf *conf)
{
    uint64_t largest = 0;
    for (size_t i = 0; i < conf->listener_count; i++) {
        uint64_t bytes = conf->listeners[i].max_message_bytes;
        largest = bytes > largest ? bytes : largest;
    }
    return (size_t)largest;
}

void convert_tree(struct conf_loader *loader, struct conf_node *root, struct conf *conf)
{
    convert_process(loader, root, conf);
    convert_listeners(loader, root, conf);
    convert_queue(loader, root, conf);
    convert_lanes(loader, root, conf);
    convert_mail(loader, root, conf);
    conf->intake.hostname = conf->hostname;
    conf->intake.route = &conf->route;
    conf->intake.max_received = LOOP_LIMIT;
    conf->intake.max_message_bytes = largest_message(conf);
}

/* ---- Defaults that are computed ---- */

static uint32_t default_threads(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores <= 2) {
        return 1;
    }
    return cores >= 32 ? 16 : (uint32_t)cores / 2;
}

static void default_process(struct conf_loader *loader, struct conf_node *root)
{
    char name[HOST_NAME_MAX + 1] = "";
    if (gethostname(name, sizeof name) != 0 || name[0] == '\0') {
        (void)snprintf(name, sizeof name, "localhost");
    }
    default_text(loader, root, "hostname", name);
    struct conf_node *threads = node_child(root, "threads");
    if (threads == NULL || node_is_null(threads)) {
        threads = threads != NULL ? threads
                                  : node_add_text(loader, root, "threads", "", CONF_FROM_DEFAULT);
        threads->kind = CONF_NODE_MAP;
    }
    char ingress[24];
    (void)snprintf(ingress, sizeof ingress, "%u", (unsigned)default_threads());
    default_text(loader, threads, "ingress", ingress);
    default_text(loader, threads, "delivery", node_text(threads, "ingress"));
}

/* A Cluster is there to spread load over; one shard would use one of its nodes. */
static void default_queue(struct conf_loader *loader, struct conf_node *root)
{
    struct conf_node *queue = node_child(root, "queue");
    if (queue == NULL || node_is_null(queue)) {
        queue = queue != NULL ? queue : node_add_text(loader, root, "queue", "", CONF_FROM_DEFAULT);
        queue->kind = CONF_NODE_MAP;
    }
    bool is_cluster = strncmp(node_text(queue, "redis"), "cluster://", 10) == 0;
    default_text(loader, queue, "shards", is_cluster ? "16" : "1");
}

static void default_backend(struct conf_loader *loader, struct conf_node *node)
{
    const char *type = node_text(node, "type");
    const struct backend_defaults *known = backend_defaults(type);
    if (known == NULL || node->kind != CONF_NODE_MAP) {
        return;
    }
    bool is_smtp = strcmp(type, "hve") == 0 || strcmp(type, "smtp") == 0;
    char number[40];
    (void)snprintf(number, sizeof number, "%u",
                   known->recipients < BATCH_RECIPIENTS_MAX ? known->recipients
                                                            : BATCH_RECIPIENTS_MAX);
    default_text(loader, node, "recipients_per_message", number);
    (void)snprintf(number, sizeof number, "%llu", (unsigned long long)known->message_bytes);
    default_text(loader, node, "message_bytes", number);
    (void)snprintf(number, sizeof number, "%u", known->concurrency);
    /* Whoever sets connections alone means to send over all of them. */
    default_text(loader, node, "concurrency",
                 is_smtp && node_text(node, "connections")[0] != '\0'
                     ? node_text(node, "connections")
                     : number);
    if (is_smtp) {
        default_text(loader, node, "connections", node_text(node, "concurrency"));
        (void)snprintf(number, sizeof number, "%u",
                       strcmp(node_text(node, "tls"), "implicit") == 0 ? 465u
                                                                       : (unsigned)known->port);
        default_text(loader, node, "port", number);
        bool logs_in = strcmp(type, "hve") == 0 || node_child(node, "user") != NULL;
        default_text(loader, node, "auth", logs_in ? "login" : "none");
    }
    if (known->host != NULL) {
        default_text(loader, node, is_smtp ? "host" : "endpoint", known->host);
    }
    struct conf_node *timeouts = node_child(node, "timeouts");
    if (timeouts == NULL || node_is_null(timeouts)) {
        timeouts = timeouts != NULL
                       ? timeouts
                       : node_add_text(loader, node, "timeouts", "", CONF_FROM_DEFAULT);
        timeouts->kind = CONF_NODE_MAP;
    }
    default_text(loader, timeouts, "reply", is_smtp ? "10m" : "60s");
}

void convert_defaults(struct conf_loader *loader, struct conf_node *root)
{
    default_process(loader, root);
    default_queue(loader, root);
    const struct conf_node *listeners = node_child(root, "listeners");
    for (struct conf_node *at = listeners != NULL ? listeners->first : NULL; at != NULL;
         at = at->next) {
        default_text(loader, at, "idle_timeout",
                     strcmp(node_text(at, "protocol"), "smtp") == 0 ? "5m" : "75s");
    }
    const struct conf_node *backends = node_child(root, "backends");
    for (struct conf_node *at = backends != NULL ? backends->first : NULL; at != NULL;
         at = at->next) {
        default_backend(loader, at);
    }
    const struct conf_node *clients = node_child(root, "clients");
    for (struct conf_node *at = clients != NULL ? clients->first : NULL; at != NULL;
         at = at->next) {
        default_text(loader, at, "choose_lane", node_child(at, "lane") == NULL ? "true" : "false");
    }
}
