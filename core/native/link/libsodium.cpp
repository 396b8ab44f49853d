// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/libsodium.hpp"

#include <dlfcn.h>

#include <type_traits>

namespace coremesh::link {

LibSodium::LibSodium(const std::string& path) {
    // The handle is kept for the process's life.
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw SodiumError("no libsodium at " + path);
    const auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
        if (function == nullptr) throw SodiumError(path + " has no " + name);
    };
    int (*init)() = nullptr;
    int (*aes_available)() = nullptr;
    size_t (*state_bytes)() = nullptr;
    find(init, "sodium_init");
    find(aes_available, "crypto_aead_aes256gcm_is_available");
    find(state_bytes, "crypto_aead_aes256gcm_statebytes");
    find(keypair, "crypto_kx_keypair");
    find(client_keys, "crypto_kx_client_session_keys");
    find(server_keys, "crypto_kx_server_session_keys");
    find(hash, "crypto_generichash");
    find(wipe, "sodium_memzero");
    find(aes_state, "crypto_aead_aes256gcm_beforenm");
    find(aes_seal, "crypto_aead_aes256gcm_encrypt_afternm");
    find(aes_open, "crypto_aead_aes256gcm_decrypt_afternm");
    find(chacha_seal, "crypto_aead_chacha20poly1305_ietf_encrypt");
    find(chacha_open, "crypto_aead_chacha20poly1305_ietf_decrypt");
    if (init() < 0) throw SodiumError("libsodium finds no source of random numbers");
    has_aes = aes_available() != 0 && state_bytes() <= kState;
}

}  // namespace coremesh::link
