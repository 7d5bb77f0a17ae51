#include "queue/keyring.h"

#include "gateway/base/codec.h"

#include <ctype.h>

struct keyring_key {
    char id[KEYRING_ID_MAX + 1];
    unsigned char bytes[KEYRING_KEY_BYTES];
};

struct keyring {
    size_t count;
    struct keyring_key keys[KEYRING_KEYS_MAX];
};

static bool id_good(struct span id)
{
    bool good = id.len > 0 && id.len <= KEYRING_ID_MAX;
    for (size_t i = 0; i < id.len && good; i++) {
        good = isalnum((unsigned char)id.data[i]) || strchr("._-", id.data[i]) != NULL;
    }
    return good;
}

static int take_bytes(struct span text, unsigned char out[KEYRING_KEY_BYTES])
{
    struct buf bytes;
    buf_init_secret(&bytes, 3 * KEYRING_KEY_BYTES);
    int status = codec_base64_decode(text, false, &bytes);
    if (status == 0 && buf_len(&bytes) != KEYRING_KEY_BYTES) {
        status = ERR_INVAL;
    }
    if (status == 0) {
        memcpy(out, buf_span(&bytes).data, KEYRING_KEY_BYTES);
    }
    buf_release(&bytes);
    return status;
}

static int take_line(struct keyring *ring, struct span line, size_t number, struct err *err)
{
    struct span rest = line;
    struct span id = span_trim(span_cut(&rest, ':'));
    if (id.len == line.len || !id_good(id)) {
        return err_set(err, ERR_INVAL,
                       "Line %zu of the key file is not \"name:key\" with a name of at most %d "
                       "letters, digits, '.', '_' and '-'.",
                       number, KEYRING_ID_MAX);
    }
    if (keyring_find(ring, id) != NULL) {
        return err_set(err, ERR_INVAL, "Line %zu of the key file: there is a key \"%.*s\" before.",
                       number, SPAN_FMT(id));
    }
    if (ring->count == KEYRING_KEYS_MAX) {
        return err_set(err, ERR_INVAL, "The key file holds more than %d keys.", KEYRING_KEYS_MAX);
    }
    struct keyring_key *key = &ring->keys[ring->count];
    if (take_bytes(span_trim(rest), key->bytes) != 0) {
        return err_set(err, ERR_INVAL,
                       "Line %zu of the key file: the key \"%.*s\" is not 32 bytes in base64 "
                       "(openssl rand -base64 32).",
                       number, SPAN_FMT(id));
    }
    memcpy(key->id, id.data, id.len);
    ring->count++;
    return 0;
}

int keyring_parse(struct span text, struct keyring **out, struct err *err)
{
    struct keyring *ring = mem_zero(sizeof(*ring));
    int status = 0;
    for (size_t number = 1; text.len > 0 && status == 0; number++) {
        struct span line = span_trim(span_cut(&text, '\n'));
        if (line.len > 0 && line.data[0] != '#') {
            status = take_line(ring, line, number, err);
        }
    }
    if (status == 0 && ring->count == 0) {
        status = err_set(err, ERR_INVAL, "The key file holds no key.");
    }
    if (status != 0) {
        keyring_free(&ring);
        return status;
    }
    *out = ring;
    return 0;
}

void keyring_free(struct keyring **keyring)
{
    if (*keyring != NULL) {
        mem_wipe(*keyring, sizeof(**keyring));
        mem_free(*keyring);
        *keyring = NULL;
    }
}

const unsigned char *keyring_first(const struct keyring *keyring, struct span *out_id)
{
    *out_id = span_of(keyring->keys[0].id);
    return keyring->keys[0].bytes;
}

const unsigned char *keyring_find(const struct keyring *keyring, struct span id)
{
    for (size_t i = 0; i < keyring->count; i++) {
        if (span_eq(span_of(keyring->keys[i].id), id)) {
            return keyring->keys[i].bytes;
        }
    }
    return NULL;
}
