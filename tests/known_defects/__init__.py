"""Errors that published VAE code made, and the tests that would have caught each here.

The tests of this package run every kind that a configuration knows, so that a new kind is held to them by itself.
Where another test catches a defect already, it is named and not repeated. `test_table.py` checks that all exist; a
test without a folder is one of this package.

D1   The KL of a flow posterior with the prior at the flow's start: too low, below zero on random data.
     test_posteriors: test_the_kl_of_a_flow_is_that_of_the_z_it_ends_in
     test_posteriors: test_the_kl_of_a_posterior_averages_the_prior_to_one
     test_posteriors: test_no_bound_on_fresh_coin_flips_lies_below_their_entropy
     models/test_vae: test_a_trace_scores_the_z_that_the_flow_ends_in
D2   A script that fails when it first logs.
     training/test_callbacks: test_on_step_is_called_with_running_means
     test_docs: test_python_blocks_run_and_print_what_is_shown
     test_cli: test_train_leaves_a_run_and_prints_its_figures
D3   A log-determinant counted once per latent.
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
D4   A mixture of products taken for a product of mixtures.
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
     distributions/test_mixture: test_density_and_mean_are_those_of_torch
     distributions/test_mixture: test_an_empty_corner_is_empty
D5   Draws with exp(log variance) as their scale.
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
     distributions/test_properties: test_density_integrates_to_one_and_has_the_moments_of_the_draws
D6   Importance weights upside down, or not normalized.
     objectives/test_bounds: test_iwae_weighs_gradients_by_normalized_importance
     objectives/test_bounds: test_the_bound_rises_with_the_number_of_samples_and_stays_below_the_evidence
     objectives/test_gradients: test_gradients_of_the_importance_weighted_bound_are_exact_on_average
D7   A VampPrior whose density has a misplaced bracket and whose draws are those of N(0, I).
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
     distributions/test_vamp: test_the_density_is_the_average_of_the_posteriors_at_the_pseudo_inputs
D8   Another weight of the KL in training than in what selects; terms of the wrong sign.
     test_training: test_training_and_validation_log_the_same_terms_at_the_same_weights
     objectives/test_common: test_the_loss_is_the_sum_of_what_is_logged
     training/test_loop: test_validation_is_a_mean_over_points_and_repeats_itself
     data/test_prepare: test_only_training_data_are_redrawn
D9   The constant of a Gaussian likelihood with the number of latents; images that broadcast.
     test_figures: test_a_likelihood_of_images_sums_over_their_pixels_and_over_nothing_else
     models/test_known_answers: test_with_the_exact_posterior_every_weight_is_the_evidence
D10  A log-mean-exp of means over a batch.
     evaluation/test_bounds: test_nll_is_a_mean_over_images_not_of_batch_means
     evaluation/test_bounds: test_first_images_do_not_depend_on_how_many_follow
     evaluation/test_bounds: test_memory_changes_rounding_only
D11  A loss that grows with the batch.
     objectives/test_common: test_a_batch_given_twice_has_the_same_loss
     training/test_loop: test_the_loss_does_not_depend_on_the_size_of_the_batch
D12  Planar layers that fold space.
     test_posteriors: test_a_trained_flow_is_invertible_with_the_log_determinant_it_reports
     test_posteriors: test_a_residual_flow_of_large_parameters_is_invertible
     test_posteriors: test_a_new_residual_flow_is_invertible_in_every_dimension
     bijections/test_low_rank: test_w_v_hat_stays_above_minus_one
D13  Noise of the second decoder in draws and not in the loss.
     test_priors: test_a_second_stage_draws_what_it_was_fitted_to
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
     models/test_second_stage: test_draws_include_the_noise_of_the_inner_likelihood
D14  A flow posterior that is not given x.
     test_posteriors: test_the_same_noise_goes_elsewhere_for_another_x
D15  Draws and density of a VampPrior that bound the variance differently; always the first components.
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
     distributions/test_mixture: test_components_are_drawn_by_their_weights
D16  A reloaded flow that normalizes by the batch it draws.
     test_priors: test_a_flow_with_data_dependent_layers_draws_after_loading_what_it_drew_before
     test_priors: test_a_saved_prior_comes_back_with_its_density_and_its_draws
D17  Reconstructions past the flow; an embedding that is random in evaluation.
     test_figures: test_reconstructions_start_from_the_end_of_the_flow
     test_figures: test_what_is_measured_or_shown_is_the_same_the_second_time
     models/test_vae: test_reconstructions_go_through_the_flow_of_the_posterior
D18  Draws of a mixture that are its means in order.
     test_priors: test_a_density_integrates_to_one_and_its_draws_fall_where_it_says
     distributions/test_mixture: test_components_are_drawn_by_their_weights
D19  Draws that keep a graph; one frozen z per point in the second stage.
     test_priors: test_draws_keep_no_graph_and_are_new_each_time
     training/test_loop: test_the_priors_stage_draws_z_anew_each_epoch_from_the_same_posterior
     models/test_vae: test_nothing_that_is_drawn_for_the_user_keeps_a_graph
D20  NaN replaced by 0, so that what is broken looks better.
     test_figures: test_a_nan_gives_an_error_or_no_figure_and_never_a_number
     test_figures: test_draws_of_what_is_nan_are_nan
     distributions/test_mixture: test_a_mixture_of_unknown_weights_draws_nan
     distributions/test_likelihoods: test_draws_of_nan_are_neither_black_nor_a_level
     test_figures: test_a_nan_in_the_data_is_refused_before_anything_learns
     training/test_bad_steps: test_a_bad_step_is_skipped_counted_and_told
     training/test_bad_steps: test_nan_in_validation_is_null_in_the_log_and_never_the_best
D21  Another number of samples than asked for, the wrong sign, gray values under a Bernoulli likelihood.
     evaluation/test_bounds: test_every_image_is_encoded_once_and_decoded_exactly_k_times
     evaluation/test_bounds: test_exact_posterior_gives_the_evidence_to_rounding_error
     evaluation/test_bounds: test_gray_values_anywhere_in_the_data_are_refused
     models/test_vae: test_data_that_the_likelihood_cannot_score_are_refused
D22  The first batch taken for the whole set.
     test_figures: test_figures_are_means_over_the_whole_set_also_where_the_last_block_is_smaller
     training/test_loop: test_logged_figures_are_means_over_points
D23  Runs that share weights, the smallest of many test losses, data divided by 255 twice.
     test_training: test_runs_of_two_seeds_share_no_weight_that_is_drawn
     test_training: test_training_one_model_leaves_the_others_of_a_process_alone
     test_training: test_the_test_split_is_not_read_before_training_has_ended
     data/test_base: test_values_out_of_range_are_refused
D24  No exact resume, a crash at a large first loss, one latent, a fitted prior that is not saved.
     test_training: test_a_first_loss_of_any_size_is_survived
     test_training: test_one_latent_is_enough_or_is_refused_when_it_is_built
     test_priors: test_a_saved_prior_comes_back_with_its_density_and_its_draws
     test_files: test_a_configuration_comes_back_from_its_own_text
     training/test_resume: test_a_crash_at_any_read_resumes_to_the_same_bits
     training/test_parallel: test_two_processes_are_one_that_cuts_its_batch_in_two
D25  Files that run code when they are read.
     test_files: test_a_file_that_would_run_code_is_refused_by_every_reader
     test_files: test_a_run_folder_with_a_planted_file_is_refused
     test_files: test_no_line_of_the_library_opens_pickles_or_names_a_device
     training/test_checkpoint: test_loading_executes_nothing
     data/readers/test_base: test_pickles_are_never_opened
D26  A prior left behind by .to(); flags that are not saved; a direction that is not the cheap one.
     test_files: test_every_number_of_a_part_is_saved_with_it_and_moves_with_it
     test_files: test_a_part_that_was_moved_computes_where_it_is
     distributions/test_flow: test_a_draw_with_its_log_prob_costs_one_sampling_direction
D27  Data asserted to lie in [0, 1], a GPU by its number, distances of samples compared across protocols.
     test_figures: test_data_outside_the_unit_interval_are_no_mistake
     test_files: test_no_line_of_the_library_opens_pickles_or_names_a_device
     evaluation/test_protocol: test_every_field_but_the_seed_keeps_figures_apart
"""
