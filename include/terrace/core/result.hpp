#pragma once
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "terrace/core/config.hpp"

namespace terrace {

/// The failure half of a `result`: `return failure{error{...}}`.
template <class E>
struct failure {
  E value;
};
template <class E>
failure(E) -> failure<E>;

/// A value or an error, with the interface of std::expected (which g++ 12 lacks): `if (!r) use(r.error())`, `*r`,
/// `r->member`. Reading the half that is not there is a bug in the caller, caught in debug builds.
template <class T, class E>
class [[nodiscard]] basic_result {
 public:
  using value_type = T;
  using error_type = E;

  template <class U = T>
  requires(!std::is_same_v<std::remove_cvref_t<U>, basic_result> && std::is_constructible_v<T, U> &&
           std::is_convertible_v<U, T>) basic_result(U&& value)
  noexcept : good_(true) { std::construct_at(&storage_.value, std::forward<U>(value)); }
  template <class G>
  requires std::is_constructible_v<E, G> basic_result(failure<G> bad)
  noexcept : good_(false) { std::construct_at(&storage_.error, std::move(bad.value)); }
  basic_result(basic_result&& other) noexcept : good_(other.good_) { take(std::move(other)); }
  basic_result(const basic_result& other) requires(
      std::is_copy_constructible_v<T>&& std::is_copy_constructible_v<E>)
      : good_(other.good_) {
    if (good_)
      std::construct_at(&storage_.value, other.storage_.value);
    else
      std::construct_at(&storage_.error, other.storage_.error);
  }
  void operator=(
      basic_result other) noexcept {  // void: nvcc takes a reference for a result that nobody reads
    clear();
    good_ = other.good_;
    take(std::move(other));
  }
  ~basic_result() { clear(); }

  bool has_value() const noexcept { return good_; }
  explicit operator bool() const noexcept { return good_; }

  T& value() & noexcept { return checked(); }
  const T& value() const& noexcept { return const_cast<basic_result*>(this)->checked(); }
  T&& value() && noexcept { return std::move(checked()); }
  T& operator*() & noexcept { return checked(); }
  const T& operator*() const& noexcept { return value(); }
  T&& operator*() && noexcept { return std::move(checked()); }
  T* operator->() noexcept { return &checked(); }
  const T* operator->() const noexcept { return &value(); }

  E& error() & noexcept { return checked_error(); }
  const E& error() const& noexcept { return const_cast<basic_result*>(this)->checked_error(); }
  E&& error() && noexcept { return std::move(checked_error()); }

 private:
  union storage {
    storage() noexcept {}
    ~storage() {}
    T value;
    E error;
  };
  void take(basic_result&& other) noexcept {
    if (good_)
      std::construct_at(&storage_.value, std::move(other.storage_.value));
    else
      std::construct_at(&storage_.error, std::move(other.storage_.error));
  }
  void clear() noexcept {
    if (good_)
      std::destroy_at(&storage_.value);
    else
      std::destroy_at(&storage_.error);
  }
  T& checked() noexcept {
    TERRACE_ASSERT(good_, "the value of a failed result was read");
    return storage_.value;
  }
  E& checked_error() noexcept {
    TERRACE_ASSERT(!good_, "the error of a successful result was read");
    return storage_.error;
  }
  storage storage_;
  bool good_;
};

/// Success without a value.
template <class E>
class [[nodiscard]] basic_result<void, E> {
 public:
  using value_type = void;
  using error_type = E;

  basic_result() noexcept : inner_(nothing{}) {}
  basic_result(const basic_result&) = default;
  basic_result(basic_result&&) noexcept = default;
  void operator=(basic_result other) noexcept { inner_ = std::move(other.inner_); }
  template <class G>
  requires std::is_constructible_v<E, G> basic_result(failure<G> bad)
  noexcept : inner_(std::move(bad)) {}

  bool has_value() const noexcept { return inner_.has_value(); }
  explicit operator bool() const noexcept { return inner_.has_value(); }
  void value() const noexcept {}
  E& error() & noexcept { return inner_.error(); }
  const E& error() const& noexcept { return inner_.error(); }
  E&& error() && noexcept { return std::move(inner_).error(); }

 private:
  struct nothing {};
  basic_result<nothing, E> inner_;
};

}  // namespace terrace
